"""Keys, votes and the strategies' answers."""

import pytest

from engine.search import DVTS, BeamSearch, BestOfN, Lookahead, Majority, branch_key, vote
from engine.types import Candidate


def candidate(answer: str | None, score: float = 0.0, finish: str = "eos") -> Candidate:
    return Candidate(str(answer), answer, finish, (score,), score, 1, ())


def test_a_key_depends_on_seed_problem_and_address_alone():
    names = [(0, "p", ()), (0, "p", (0,)), (0, "p", (0, 0)), (0, "p", (1,)), (1, "p", (0,)), (0, "q", (0,))]
    names += [(0, "p", (1, 1)), (0, "p", (11,)), (0, 'p", [1]', ())]
    keys = [branch_key(*name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    assert keys == [branch_key(*name) for name in names]


def test_keys_stay_what_they_were():
    assert branch_key(0, "p", (3, 1)) == 0xA3ADB2B75B83207C


def test_each_vote_chooses_by_its_own_rule():
    candidates = [candidate("a", 0.2), candidate("b", 0.6), candidate("a", 0.3), candidate("c", 0.5)]
    candidates += [candidate("c", 0.4), candidate("a", 0.1)]
    assert vote(candidates, "majority") == ("a", 2)
    assert vote(candidates, "weighted") == ("c", 3)
    assert vote(candidates, "naive") == ("b", 1)


@pytest.mark.parametrize("rule", ["majority", "weighted", "naive"])
def test_ties_go_to_the_earliest_candidate(rule):
    assert vote([candidate("b", 0.5), candidate("a", 0.5)], rule) == ("b", 0)
    assert vote([candidate("a", 0.5), candidate("a", 0.5)], rule) == ("a", 0)


def test_a_naive_tie_is_between_candidates_not_answers():
    assert vote([candidate("a", 0.1), candidate("b", 0.9), candidate("a", 0.9)], "naive") == ("b", 1)


def test_a_weighted_tie_does_not_depend_on_rounding():
    # Added from left to right, ten times 0.1 is a little less than 1.
    assert vote([candidate("a", 0.1)] * 10 + [candidate("b", 1.0)], "weighted")[0] == "a"


@pytest.mark.parametrize("rule", ["majority", "weighted", "naive"])
def test_only_finished_answers_vote(rule):
    left_out = [candidate("b", 0.9, "length"), candidate("b", 0.9, "error"), candidate(None, 0.9)]
    assert vote([*left_out, candidate("a", 0.0)], rule) == ("a", 3)
    assert vote(left_out, rule) == (None, None)
    assert vote([], rule) == (None, None)


def test_beams_share_out_their_slots():
    beam = BeamSearch(width=4)
    assert beam.select([0.1, 0.9, 0.5, 0.9], 16) == [(1, 4), (3, 4), (2, 4), (0, 4)]
    assert beam.select([0.1] * 13, 13) == [(0, 4), (1, 4), (2, 4), (3, 1)]  # ties: the earliest
    assert beam.select([0.1, 0.2], 16) == [(1, 4), (0, 4)]  # fewer are live than could be kept
    assert beam.select([0.1, 0.2], 3) == [(1, 3)]
    assert beam.select([], 5) == []
    assert BeamSearch(width=2).select([0.1, 0.9, 0.5, 0.9], 4) == [(1, 2), (3, 2)]


def test_a_width_may_be_the_square_root_of_the_slots():
    """M = sqrt(N) in Snell et al. 2024: of 9 slots 3 steps go on with 3 children each."""
    beam = BeamSearch(width=0)
    assert beam.select([0.1, 0.9, 0.5, 0.9, 0.3], 9) == [(1, 3), (3, 3), (2, 3)]
    assert beam.select([0.1, 0.9, 0.5, 0.9, 0.3], 5) == [(1, 2), (3, 2), (2, 1)]
    assert beam.select([0.1], 1) == [(0, 1)]
    assert beam.select([], 0) == []


def test_budgets_are_divided_as_each_strategy_says():
    assert Majority().groups(7) == BestOfN().groups(7) == (1, 7)
    assert BeamSearch(width=4).groups(16) == (1, 16)
    assert DVTS(width=4).groups(16) == (4, 4)
    assert [Lookahead(width=2, lookahead=k).groups(16)[1] for k in range(5)] == [16, 8, 5, 4, 3]


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: BeamSearch(width=-1), "got -1"),
        (lambda: DVTS(width=0), "got 0"),
        (lambda: BeamSearch(max_rounds=-2), "got -2"),
        (lambda: BeamSearch(vote="loudest"), "'loudest'"),
        (lambda: BestOfN(vote="loudest"), "'loudest'"),
        (lambda: Lookahead(lookahead=-1), "got -1"),
        (lambda: DVTS(width=-3), "got -3"),
        (lambda: BeamSearch(width=17).groups(16), "got 17"),
        (lambda: Lookahead(width=4, lookahead=3).groups(12), "got 4"),
        (lambda: DVTS(width=4).groups(18), "got 18"),
        (lambda: DVTS(width=4).groups(2), "got 2"),
        (lambda: vote([], "loudest"), "'loudest'"),
    ],
)
def test_bad_values_are_named(make, received):
    with pytest.raises(ValueError, match=received):
        make()
