"""Best-of-N that stops when the vote is decided, and searches that go on from earlier ones."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.accounting import Ledger
from engine.search import Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, vote
from engine.search.adaptive import probability_ahead
from engine.types import Candidate, Problem

from .fakes import PROBLEM, FakePolicy, FakeVerifier, hashed_judge, random_draw, scripted_draw, search


def candidate(answer: str | None, score: float = 0.0, finish: str = "eos") -> Candidate:
    return Candidate(str(answer), answer, finish, (score,), score, 1, ())


def whole(answers: str):
    return scripted_draw({(index,): answer for index, answer in enumerate(answers)})


@pytest.mark.parametrize(
    ("answers", "num_left", "is_decided"),
    [
        ("aaa", 4, False),  # four new ones win
        ("aaa", 3, True),  # three new ones tie, and the earlier answer wins a tie
        ("baaa", 2, False),  # two more of the earlier "b" tie, and it wins
        ("baaa", 1, True),
        ("aaab", 2, True),  # the later "b" needs one more than a tie
        ("aabb", 0, True),
        ("", 1, False),
    ],
)
def test_a_majority_is_decided_when_nobody_can_overtake(answers, num_left, is_decided):
    candidates = [candidate(answer) for answer in answers]
    assert Adaptive(vote="majority").is_decided(candidates, num_left) is is_decided


def test_only_voters_count_and_scores_weigh():
    spoiled = [candidate("a", 0.9, "length"), candidate(None, 0.9)]
    assert not Adaptive(vote="majority").is_decided([*spoiled, candidate("a")], 2)
    candidates = [candidate("a", 1.0), candidate("a", 1.0), candidate("b", 0.5)]
    assert Adaptive().is_decided(candidates, 1)
    assert not Adaptive().is_decided([candidate("a", 0.4), *candidates[1:]], 1)  # b could reach 1.5 over 1.4


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4).map(lambda i: i / 4)), max_size=9),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 4).map(lambda i: i / 4)), max_size=5),
    st.sampled_from(["weighted", "majority"]),
)
def test_what_is_decided_stays_so(first, rest, rule):
    candidates = [candidate(*pair) for pair in first]
    if Adaptive(vote=rule).is_decided(candidates, len(rest)):
        everyone = candidates + [candidate(*pair) for pair in rest]
        assert vote(everyone, rule)[0] == vote(candidates, rule)[0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rule", ["weighted", "majority"])
def test_the_answer_is_that_of_the_whole_budget(seed, rule):
    full = search(BestOfN() if rule == "weighted" else Majority(), 12, seed=seed)
    early = search(Adaptive(vote=rule, batch=1), 12, seed=seed)
    assert early.answer == full.answer
    assert early.candidates == full.candidates[: early.num_generations]


def test_an_early_stop_saves_what_it_did_not_draw():
    policy = FakePolicy(whole("11111111"))
    result = search(Adaptive(vote="majority", batch=2), 8, policy=policy)
    assert [call["num_branches"] for call in policy.extends] == [2, 2]
    assert (result.num_generations, result.budget, len(result.candidates)) == (4, 8, 4)
    assert policy.forks == [2, 2], "both batches are children of the prompt"
    assert result.ledger.tokens["generated"] == 8


def test_options_of_adaptive_change_the_outcome():
    def spent(strategy, answers, **options):
        return search(strategy, len(answers), whole(answers), **options).num_generations

    assert spent(Adaptive(vote="majority", batch=1), "1" * 9) == 5
    assert spent(Adaptive(vote="majority", batch=4), "1" * 9) == 8
    # 1 - 1/2^(n+1) after n equal answers: 0.9375 at three, 0.96875 at four.
    assert spent(Adaptive(vote="majority", batch=1, confidence=0.95), "1" * 9) == 4
    assert spent(Adaptive(vote="majority", batch=1, confidence=0.9), "1" * 9) == 3
    doubtful = {"judge": lambda text: 0.5}
    assert spent(Adaptive(vote="weighted", batch=1), "1" * 9, **doubtful) == 6


def test_majority_scores_nothing_and_weighted_does():
    verifier = FakeVerifier(hashed_judge)
    assert not Adaptive(vote="majority").is_scored
    search(Adaptive(vote="majority"), 8, verifier=verifier)
    assert verifier.num_calls == 0
    search(Adaptive(batch=2), 8, verifier=verifier)
    assert verifier.num_calls == 1 + 4, "one opening, and a call for every batch"


def test_the_posterior_is_that_of_the_beta_distribution():
    for ahead, behind in [(0, 0), (4, 0), (3, 2), (1, 5), (40, 30), (300, 290)]:
        total = ahead + behind + 1  # P(Beta(1 + a, 1 + b) > 1/2) = P(Binomial(a + b + 1, 1/2) <= a)
        exact = sum(math.comb(total, k) for k in range(ahead + 1)) / 2**total
        assert probability_ahead(ahead, behind) == pytest.approx(exact, abs=1e-12)
    rng = random.Random(0)
    drawn = [rng.betavariate(3.5, 1.75) > 0.5 for _ in range(20_000)]
    assert probability_ahead(2.5, 0.75) == pytest.approx(sum(drawn) / len(drawn), abs=0.01)
    assert 0.99 < probability_ahead(60_000, 59_000) < 1


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: Adaptive(batch=0), "got 0"),
        (lambda: Adaptive(confidence=0.5), "got 0.5"),
        (lambda: Adaptive(confidence=1.1), "got 1.1"),
        (lambda: Adaptive(confidence=math.nan), "got nan"),
        (lambda: Adaptive(vote="naive"), "weighted and majority, got 'naive'"),
        (lambda: Adaptive(vote="loudest"), "'loudest'"),
    ],
)
def test_bad_values_are_named(make, received):
    with pytest.raises(ValueError, match=received):
        make()


@pytest.mark.parametrize("strategy", [Majority(), BestOfN(), Adaptive(batch=3)], ids=lambda each: each.name)
def test_a_search_that_goes_on_is_the_search_of_the_larger_budget(strategy):
    pilot = search(BestOfN() if strategy.is_scored else Majority(), 3)
    longer, plain = search(strategy, 8, start=pilot), search(strategy, 8)
    assert (longer.candidates, longer.answer) == (plain.candidates, plain.answer)
    assert longer.tree == plain.tree
    assert longer.ledger.tokens == plain.ledger.tokens
    assert len(pilot.candidates) == 3, "the pilot itself is left alone"
    assert pilot.ledger.tokens["generated"] < longer.ledger.tokens["generated"]


@pytest.mark.parametrize("strategy", [BeamSearch(width=2), Rebase(), Lookahead(width=2)], ids=lambda each: each.name)
def test_any_strategy_goes_on_from_a_pilot_whose_answers_vote(strategy):
    pilot = search(BestOfN(), 3)
    policy = FakePolicy(random_draw)
    result = search(strategy, 11, policy=policy, start=pilot)
    assert result.candidates[:3] == pilot.candidates
    num_beams = 8 // (strategy.lookahead + 1)
    assert policy.extends[0]["num_branches"] == num_beams
    assert result.num_generations == 11
    assert all(candidate.address[0] >= 3 for candidate in result.candidates[3:])
    nodes = result.tree.nodes
    assert len({node.address for node in nodes}) == len(nodes)
    assert all(nodes[node.parent].address == node.address[:-1] for node in nodes[1:])
    assert nodes[result.tree.best].status == "final"


def test_a_pilot_that_spent_everything_only_votes():
    pilot = search(BestOfN(), 4)
    policy = FakePolicy(random_draw)
    result = search(Majority(), 4, policy=policy, start=pilot)
    assert policy.num_calls == 0
    assert result.candidates == pilot.candidates
    assert result.answer == vote(pilot.candidates, "majority")[0]
    with pytest.raises(ValueError, match="at least the 4 generations already spent, got 3"):
        search(Majority(), 3, start=pilot)


def test_a_decided_pilot_opens_nothing():
    policy = FakePolicy(whole("1111"))
    pilot = search(Majority(), 4, policy=policy)
    result = search(Adaptive(vote="majority"), 8, policy=policy, start=pilot)
    assert (result.num_generations, policy.num_opened) == (4, 1 + 4)


def test_a_search_goes_on_from_its_own_problem_only():
    pilot = search(Majority(), 2, problem=Problem("q", PROBLEM.prompt))
    with pytest.raises(AssertionError):
        search(Majority(), 4, start=pilot)


def test_a_bill_takes_in_another():
    pilot, bill = Ledger(), Ledger()
    pilot.add("generated", 5, 50)
    pilot.add("verified", 4, 40)
    pilot.add("cached", 3)
    bill.include(pilot, "estimation")
    assert (bill.tokens["estimation"], bill.flops["estimation"], bill.tokens["cached"]) == (9, 90, 3)
    bill.include(pilot)
    assert (bill.tokens["generated"], bill.tokens["estimation"], bill.total_flops) == (5, 9, 180)
