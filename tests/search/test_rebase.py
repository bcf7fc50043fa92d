"""Reward-balanced allotment, and the diversity floor of beam search."""

import math

import pytest

from engine.search import DVTS, BeamSearch, Lookahead, Rebase

from .fakes import FakePolicy, scripted_draw, search


def children(strategy, scores, num_slots, texts=()):
    return dict(strategy.select(scores, num_slots, texts))


def test_children_follow_the_softmax_of_the_scores():
    # exp(0.4 / 0.2) = 7.39 and exp(0) = 1: of 16 slots 14.09 and 1.91, rounded to the nearest.
    assert Rebase().select([0.5, 0.9], 16) == [(1, 14), (0, 2)]
    assert Rebase(temperature=1.0).select([0.5, 0.9], 16) == [(1, 10), (0, 6)]


def test_the_temperature_is_a_dial_from_the_best_alone_to_all_alike():
    scores = [0.2, 0.8, 0.5, 0.6]
    assert children(Rebase(temperature=1e-6), scores, 8) == {1: 8}
    assert children(Rebase(temperature=1e6), scores, 8) == {0: 2, 1: 2, 2: 2, 3: 2}
    given = [children(Rebase(temperature=t), scores, 64)[1] for t in (0.05, 0.2, 1.0, 5.0)]
    assert given == sorted(given, reverse=True)
    assert len(set(given)) == 4


def test_what_does_not_divide_goes_to_the_largest_remainders_then_to_the_earliest():
    assert Rebase().select([0.5, 0.5, 0.5], 4) == [(0, 2), (1, 1), (2, 1)]
    assert Rebase().select([0.5] * 5, 3) == [(0, 1), (1, 1), (2, 1)]
    assert Rebase().select([], 3) == []
    assert Rebase(temperature=1e-9).select([0.0, 1.0], 1) == [(1, 1)]  # no overflow


@pytest.mark.parametrize("num_slots", [1, 2, 7, 64])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 3.0])
def test_every_slot_is_given_out_and_none_twice(num_slots, temperature):
    scores = [(7 * i % 11) / 11 for i in range(9)][:num_slots]
    chosen = Rebase(temperature=temperature).select(scores, num_slots)
    assert sum(count for _, count in chosen) == num_slots
    assert all(count >= 1 for _, count in chosen)
    ranks = [scores[index] for index, _ in chosen]
    assert ranks == sorted(ranks, reverse=True)


SCRIPT = {(0,): "a\n", (1,): "b\n", (2,): "c\n", (3,): "d\n"}
SCRIPT |= {(parent, child): str(parent) for parent in range(4) for child in range(4)}
SCORES = {"a\n": 0.5, "b\n": 0.9, "c\n": 0.5, "d\n": 0.1} | {f"{t}\n{i}": 0.5 for i, t in enumerate("abcd")}


def test_a_whole_search():
    policy = FakePolicy(scripted_draw(SCRIPT))
    result = search(Rebase(temperature=0.4), 4, judge=SCORES, policy=policy)
    # Of 4 slots 1.92, 0.71, 0.71 and 0.26 for the last.
    assert [candidate.address for candidate in result.candidates] == [(1, 0), (1, 1), (0, 0), (2, 0)]
    assert [node.status for node in result.tree.nodes[1:5]] == ["kept", "kept", "kept", "pruned"]
    assert result.num_generations == 4


def test_options_of_rebase_change_the_outcome():
    draw = scripted_draw(SCRIPT)
    even = search(Rebase(temperature=50.0), 4, draw, SCORES)
    assert [candidate.answer for candidate in even.candidates] == ["1", "0", "2", "3"]
    greedy = search(Rebase(temperature=0.01), 4, draw, SCORES)
    assert {candidate.answer for candidate in greedy.candidates} == {"1"}
    assert search(Rebase(max_rounds=1), 4, draw, SCORES).answer is None
    scores = SCORES | {"a\n0": 0.9, "b\n1": 0.3, "c\n2": 0.1}
    answers = {
        vote: search(Rebase(temperature=0.4, vote=vote), 4, draw, scores).answer for vote in ("naive", "majority")
    }
    assert answers == {"naive": "0", "majority": "1"}


def test_beams_that_say_the_same_as_a_better_one_are_left_out():
    scores, texts = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], ["x", "x", "x", "y", "y", "z"]
    assert [index for index, _ in BeamSearch(width=2).select(scores, 6, texts)] == [0, 1, 2]
    for limit, kept in [(0, [0, 3, 5]), (1, [0, 1, 3]), (2, [0, 1, 2])]:
        chosen = BeamSearch(width=2, max_duplicates=limit).select(scores, 6, texts)
        assert chosen == [(index, 2) for index in kept], limit


def test_survivors_share_the_slots_of_the_duplicates_that_nobody_can_replace():
    floor = BeamSearch(width=2, max_duplicates=0)
    assert floor.select([0.9, 0.8, 0.7, 0.6], 7, ["x", "x", "y", "x"]) == [(0, 4), (2, 3)]
    assert floor.select([0.1, 0.1, 0.1], 3, ["x", "x", "x"]) == [(0, 3)]  # ties: the earliest
    assert floor.select([0.1, 0.2], 8, ["x", "y"]) == [(1, 2), (0, 2)]  # no duplicate: as without a floor
    assert floor.select([], 4, []) == []


@pytest.mark.parametrize("make", [BeamSearch, Lookahead], ids=["beam", "lookahead"])
def test_the_floor_changes_a_search(make):
    def draw(key, text, new_text):  # the first step of seven branches in eight is the same
        return "3" if text else f"{'ab'[(key or 0) % 8 == 0]}\n"

    options = {"width": 2} | ({"lookahead": 1} if make is Lookahead else {})
    budget = 32 * (options.get("lookahead", 0) + 1)
    judge = lambda text: 0.9 if text.startswith("a") else 0.1  # noqa: E731
    plain = search(make(**options), budget, draw, judge)
    diverse = search(make(**options, max_duplicates=0), budget, draw, judge)
    texts = [{candidate.text for candidate in result.candidates} for result in (plain, diverse)]
    assert texts == [{"a\n3"}, {"a\n3", "b\n3"}]
    assert len(diverse.candidates) == 32


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: Rebase(temperature=0), "above 0 and finite, got 0"),
        (lambda: Rebase(temperature=math.inf), "got inf"),
        (lambda: Rebase(temperature=math.nan), "got nan"),
        (lambda: Rebase(max_rounds=0), "got 0"),
        (lambda: Rebase(vote="loudest"), "'loudest'"),
        (lambda: BeamSearch(max_duplicates=-1), "max_duplicates must be at least 0, got -1"),
        (lambda: DVTS(max_duplicates=2), "no effect with dvts.*got 2"),
    ],
)
def test_bad_values_are_named(make, received):
    with pytest.raises(ValueError, match=received):
        make()
