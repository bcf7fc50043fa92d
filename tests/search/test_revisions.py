"""Chains of attempts: what each sees, whose branch it goes on with, how they vote."""

from __future__ import annotations

import random

import pytest

from engine.search import BestOfN, Majority, Revisions, branch_key, vote
from engine.types import Candidate

from .fakes import PROBLEM, FakePolicy, FakeVerifier, drive, hashed_judge, random_draw, start


def revise(strategy, budget, draw=random_draw, judge=hashed_judge, *, reviser=None, verifier=None, **options):
    """A search whose policy must not be asked; asserts that nothing stays open."""
    reviser = reviser or FakePolicy(draw)
    if verifier is None and strategy.is_scored:
        verifier = FakeVerifier(judge)
    policy = FakePolicy(lambda *_: pytest.fail("the policy sampled in the place of the reviser"))
    result = drive(start(strategy, policy, verifier, budget=budget, reviser=reviser, **options))
    assert reviser.num_open == 0
    assert verifier is None or verifier.num_open == 0
    return result


def address(chain: int, attempt: int) -> tuple[int, ...]:
    return (chain, *[0] * attempt)


def scripted(script: dict[tuple[int, int], str]):
    """Attempts by (chain, number)."""
    by_key = {branch_key(0, PROBLEM.id, address(*place)): text for place, text in script.items()}

    def draw(key, text, new_text):
        rest = by_key[key][len(new_text) :]
        return rest.splitlines(keepends=True)[0] if rest else ""

    return draw


TWO_CHAINS = {(chain, number): f"{chain}\n{number}" for chain in range(2) for number in range(4)}


def test_every_attempt_sees_those_before_it_and_chains_advance_together():
    reviser = FakePolicy(scripted(TWO_CHAINS))
    result = revise(Revisions(parallel=2, context=2), 8, reviser=reviser)
    assert [call["num_branches"] for call in reviser.extends] == [2, 2, 2, 2]
    assert [call["histories"][1] for call in reviser.extends] == [
        (),
        ("1\n0",),
        ("1\n0", "1\n1"),
        ("1\n1", "1\n2"),
    ]
    assert [each.address for each in result.candidates] == [address(c, n) for n in range(4) for c in range(2)]
    assert [each.text for each in result.candidates[:3]] == ["0\n0", "1\n0", "0\n1"]
    assert [len(each.scores) for each in result.candidates] == [2] * 8
    assert (result.num_generations, result.strategy) == (8, "revisions")
    assert [node.parent for node in result.tree.nodes] == [None, 0, 0, 1, 2, 3, 4, 5, 6]
    assert all(node.status == "final" for node in result.tree.nodes[1:])


def test_a_branch_is_opened_anew_only_when_the_window_slides():
    reviser, verifier = FakePolicy(scripted(TWO_CHAINS)), FakeVerifier(hashed_judge, reads_history=True)
    revise(Revisions(parallel=2, context=2), 8, reviser=reviser, verifier=verifier)
    slid = [("0\n1", "0\n2"), ("1\n1", "1\n2")]
    assert reviser.opened == verifier.opened == [(), (), *slid]
    assert verifier.histories[::2] == [(), ("0\n0",), ("0\n0", "0\n1"), slid[0]]
    whole = FakePolicy(scripted(TWO_CHAINS))
    revise(Revisions(parallel=2, context=3), 8, reviser=whole)
    assert whole.opened == [(), ()]


def test_a_verifier_that_reads_no_history_is_opened_once_and_judges_attempts_alone():
    verifier = FakeVerifier(hashed_judge)
    revise(Revisions(parallel=2), 8, scripted(TWO_CHAINS), verifier=verifier)
    assert verifier.opened == [()]
    assert set(verifier.judged) == {"0\n", "1\n", *TWO_CHAINS.values()}


def test_one_that_reads_a_history_judges_attempts_alone_where_it_is_asked_to():
    verifier = FakeVerifier(hashed_judge, reads_history=True)
    strategy = Revisions(parallel=2, context=2, judge_alone=True)
    result = revise(strategy, 8, scripted(TWO_CHAINS), verifier=verifier)
    assert verifier.opened == [()]
    assert verifier.histories == [()] * 8
    assert [each.scores for each in result.candidates] == [(hashed_judge(each.text),) for each in result.candidates]


@pytest.mark.parametrize("reads_history", [False, True])
@pytest.mark.parametrize(("bad", "finish"), [("!", "error"), ("1" * 80, "length"), ("", "eos")])
def test_an_attempt_that_failed_stays_out_of_the_context(bad, finish, reads_history):
    script = {(0, 0): "a", (0, 1): bad, (0, 2): "c", (0, 3): "d", (0, 4): "e"}
    reviser, verifier = FakePolicy(scripted(script)), FakeVerifier(hashed_judge, reads_history=reads_history)
    result = revise(Revisions(parallel=1, context=2), 5, reviser=reviser, verifier=verifier)
    histories = [call["histories"][0] for call in reviser.extends]
    assert histories == [(), ("a",), ("a",), ("a", "c"), ("c", "d")]
    assert [each.finish for each in result.candidates] == ["eos", finish, "eos", "eos", "eos"]
    if reads_history:
        assert verifier.histories == [(), ("a",), ("a", "c"), ("c", "d")]


def test_a_score_that_is_not_finite_makes_a_failed_attempt():
    script = {(0, 0): "a", (0, 1): "b", (0, 2): "c"}
    reviser = FakePolicy(scripted(script))
    judge = {"a": 0.5, "b": float("nan"), "c": 0.5}.__getitem__
    verifier = FakeVerifier(judge, reads_history=True)
    result = revise(Revisions(parallel=1), 3, reviser=reviser, verifier=verifier)
    assert [call["histories"][0] for call in reviser.extends] == [(), ("a",), ("a",)]
    assert verifier.histories == [(), ("a",), ("a",)]
    assert result.num_errors == 1


def test_the_oldest_attempts_give_way_where_the_model_holds_fewer():
    script = {(0, number): str(number) * 5 for number in range(4)}
    one_fits = FakePolicy(scripted(script), context=2 * len(PROBLEM.prompt) + 6 + 60)
    revise(Revisions(parallel=1, context=4), 4, reviser=one_fits)
    assert [call["histories"][0] for call in one_fits.extends] == [(), ("0" * 5,), ("1" * 5,), ("2" * 5,)]
    script[0, 2] = "2" * 20  # beside it none of the two before fits any more
    two_fit = FakePolicy(scripted(script), context=3 * len(PROBLEM.prompt) + 12 + 60)
    revise(Revisions(parallel=1, context=4), 4, reviser=two_fit)
    assert [call["histories"][0] for call in two_fit.extends][2:] == [("0" * 5, "1" * 5), ()]
    none_fits = FakePolicy(scripted(script), context=70)
    revise(Revisions(parallel=1, context=4), 4, reviser=none_fits)
    assert [call["histories"][0] for call in none_fits.extends] == [()] * 4


@pytest.mark.parametrize("seed", range(20))
def test_budgets_are_spent_exactly_and_longer_chains_begin_alike(seed):
    rng = random.Random(seed)
    parallel, context = rng.randint(1, 4), rng.randint(1, 3)
    strategy = Revisions(parallel=parallel, context=context, vote=rng.choice(["hierarchical", "majority", "naive"]))
    short, long = (revise(strategy, parallel * length, seed=seed, max_tokens=12) for length in (2, 5))
    assert (len(short.candidates), len(long.candidates)) == (2 * parallel, 5 * parallel)
    assert long.candidates[: 2 * parallel] == short.candidates
    assert long.num_generations == 5 * parallel


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("reads_history", [False, True])
def test_nothing_stays_open_where_a_model_fails(call, reads_history):
    reviser = FakePolicy(random_draw, fail_at=call)
    verifier = FakeVerifier(hashed_judge, reads_history=reads_history)
    with pytest.raises(RuntimeError):
        revise(Revisions(parallel=2, context=1), 16, reviser=reviser, verifier=verifier)
    assert reviser.num_open == verifier.num_open == 0


def test_an_earlier_search_votes_along_and_chains_start_beside_it():
    policy = FakePolicy(random_draw)
    pilot = drive(start(Majority(), policy, None, budget=3))
    result = revise(Revisions(parallel=2, vote="majority"), 7, start=pilot)
    assert result.candidates[:3] == pilot.candidates
    assert {each.address[0] for each in result.candidates[3:]} == {3, 4}
    assert result.num_generations == 7
    more = revise(Revisions(parallel=2, vote="majority"), 11, start=result)
    assert {each.address[0] for each in more.candidates[7:]} == {5, 6}
    assert more.num_generations == len(more.candidates) == 11


def candidate(chain: int, answer: str, score: float) -> Candidate:
    return Candidate(answer, answer, "eos", (score,), score, 1, (chain, 0))


def test_the_hierarchical_vote_gives_each_chain_one_voice():
    long_chain = [candidate(0, "a", 0.5) for _ in range(6)]
    others = [candidate(1, "b", 0.4), candidate(2, "b", 0.3), candidate(2, "c", 0.2)]
    found = [*long_chain, *others]
    assert vote(found, "weighted") == ("a", 0)
    assert vote(found, "hierarchical") == ("b", 6)
    assert vote([candidate(0, "a", 0.5), candidate(1, "b", 0.5)], "hierarchical") == ("a", 0), "the earliest of equals"
    assert vote([], "hierarchical") == (None, None)


def test_the_vote_option_decides():
    script = {(0, n): "a" for n in range(3)} | {(1, 0): "b", (1, 1): "c", (1, 2): "b"}
    judge = {"a": 0.2, "b": 0.35, "c": 0.9}.__getitem__
    answers = {
        rule: revise(Revisions(parallel=2, vote=rule), 6, scripted(script), judge).answer
        for rule in ("hierarchical", "weighted", "naive", "majority")
    }
    assert answers == {"hierarchical": "c", "weighted": "c", "naive": "c", "majority": "a"}
    judge = {"a": 0.3, "b": 0.35, "c": 0.1}.__getitem__
    assert revise(Revisions(parallel=2), 6, scripted(script), judge).answer == "b"
    assert revise(Revisions(parallel=2, vote="weighted"), 6, scripted(script), judge).answer == "a"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parallel": 0}, "parallel must be at least 1, got 0"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"vote": "best"}, "vote must be one of hierarchical, .*'best'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        Revisions(**options)


def test_bad_searches():
    with pytest.raises(ValueError, match="4 parallel chains divide, got 6"):
        revise(Revisions(), 6)
    with pytest.raises(ValueError, match="'revisions' needs a reviser, got None"):
        drive(start(Revisions(), FakePolicy(random_draw), FakeVerifier(hashed_judge), budget=4))
    with pytest.raises(ValueError, match="vote must be one of majority, weighted, naive, got 'hierarchical'"):
        BestOfN(vote="hierarchical")
