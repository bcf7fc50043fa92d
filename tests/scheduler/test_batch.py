"""One budget for many problems: never overshot, spent where it helps, and what one saves another gets."""

import random
from dataclasses import replace

import pytest

from engine.scheduler import ComputeOptimal, Predictor, search_batch
from engine.search import DVTS, Adaptive, BestOfN, Lookahead, Majority
from tests.search.fakes import FakeVerifier

from .builders import calibration, cell, majority_curve, plan, plan_all, problem_of

EASY = [problem_of(100, f"e{i}-") for i in range(4)]
HARD = [problem_of(30, f"h{i}-") for i in range(4)]
ADAPTIVE = Adaptive(vote="majority", batch=1)


def strategy_of(*cells, predictor=None, edges=(0.7,)):
    return ComputeOptimal(calibration(cells, edges, predictor))


def gains_on_hard(strategy=Majority(), easy=None):  # noqa: B008 - frozen
    """Nothing is gained on easy problems beyond the pilot, much on hard ones."""
    cells = [cell(0, strategy, budget, right) for budget, right in (easy or {4: 95, 16: 95}).items()]
    return strategy_of(*cells, *(cell(1, strategy, budget, right) for budget, right in {4: 20, 16: 60}.items()))


def spent(results):
    return [result.num_generations for result in results]


def test_the_budget_goes_where_it_helps():
    results = search_batch(plan_all, EASY + HARD, gains_on_hard(), 64)
    assert spent(results) == [4, 4, 4, 4, 16, 16, 12, 4], "equal gains go to the earliest"
    assert [result.problem for result in results] == EASY + HARD
    assert all(result.strategy == "compute-optimal" for result in results)
    assert "majority, 12 generations" in results[-2].plan
    assert all(len(result.candidates) == result.num_generations for result in results)


def test_what_would_gain_nothing_is_not_spent():
    assert spent(search_batch(plan_all, EASY + HARD, gains_on_hard(), 10_000)) == [4] * 4 + [16] * 4


def test_what_an_early_stop_saves_flows_to_the_others():
    """Easy problems are promised as much as hard ones, stop when their vote is decided, and hard ones get the rest."""
    alike = {4: 20, 16: 60}
    fixed = search_batch(plan_all, EASY + HARD, gains_on_hard(easy=alike), 80)
    live = search_batch(plan_all, EASY + HARD, gains_on_hard(ADAPTIVE, alike), 80)
    assert spent(fixed) == [16, 16, 16, 16, 4, 4, 4, 4], "equal gains go to the earliest"
    assert sum(spent(live)) <= 80
    assert all(used < 16 for used in spent(live)[:4])
    assert sum(spent(live)[4:]) > 16, "the hard ones got more than without early stops"
    assert any(len(result.plan.split(", then ")) > 1 for result in live[4:]), "in a later round"
    assert [result.answer for result in live[:4]] == ["1"] * 4


def test_a_problem_goes_on_from_where_it_stands():
    live = search_batch(plan_all, EASY + HARD, gains_on_hard(ADAPTIVE, {4: 20, 16: 60}), 80)
    alone = search_batch(plan_all, HARD[:1], strategy_of(*majority_curve(0, {4: 20, 16: 60}), edges=()), 16)
    for result in live:
        if result.problem == HARD[0]:
            texts = [candidate.text for candidate in result.candidates]
            assert texts == [candidate.text for candidate in alone[0].candidates][: len(texts)]
            tokens = result.ledger.tokens
            assert tokens["generated"] + tokens["estimation"] == sum(each.num_tokens for each in result.candidates)


def test_a_problem_that_gets_nothing_more_still_votes():
    """By the vote of its bin's best strategy, not by that of the pilot."""
    cells = [cell(0, Majority(), 4, 60), cell(0, BestOfN(), 4, 50)]
    (result,) = search_batch(plan_all, HARD[:1], strategy_of(*cells, edges=()), 4)
    assert (result.num_generations, len(result.candidates)) == (4, 4)
    assert "majority, 4 generations" in result.plan
    only_steps = strategy_of(cell(0, Lookahead(width=2), 12, 50), edges=())
    (result,) = search_batch(plan_all, HARD[:1], only_steps, 4)
    assert "the pilot alone, 4 generations" in result.plan


def test_shares_that_no_strategy_can_spend_are_rounded_down():
    cells = [cell(0, DVTS(width=4), 12, 50)]
    results = search_batch(plan_all, HARD[:2], strategy_of(*cells, edges=()), 22)
    assert spent(results) == [12, 8]


def test_samples_of_a_predictor_that_does_not_reuse_them_are_on_the_bill_alone():
    predictor = Predictor("oracle", 6, is_reused=False)
    strategy = strategy_of(*majority_curve(0, {4: 60}), edges=(), predictor=predictor)
    results = search_batch(plan_all, HARD[:2], strategy, 8)
    assert spent(results) == [4, 4]
    for result in results:
        assert result.ledger.tokens["generated"] == sum(each.num_tokens for each in result.candidates)
        assert result.ledger.tokens["estimation"] >= 6


@pytest.mark.parametrize("seed", range(12))
def test_a_total_is_never_overshot(seed):
    rng = random.Random(seed)
    strategies = [Majority(), ADAPTIVE, BestOfN(), DVTS(width=2), Lookahead(width=2), Adaptive(batch=3)]
    cells = [
        cell(index, each, budget, rng.randint(0, 100))
        for index in (0, 1)
        for each in rng.sample(strategies, 3)
        for budget in rng.sample([4, 6, 8, 12, 16], 3)
    ]
    problems = [problem_of(rng.randint(0, 100), f"{i}-") for i in range(6)]
    total = rng.randint(24, 80)
    results = search_batch(plan_all, problems, strategy_of(*cells), total)
    assert sum(spent(results)) <= total
    assert min(spent(results)) >= 4
    assert all(result.num_generations <= result.budget for result in results)


def test_without_a_pilot_every_problem_gets_what_a_strategy_can_spend():
    predictor = Predictor("score", 2, is_reused=False)
    strategy = strategy_of(cell(0, DVTS(width=4), 8, 50), edges=(), predictor=predictor)
    assert spent(search_batch(plan_all, HARD[:3], strategy, 15)) == [4, 4, 4]
    with pytest.raises(ValueError, match="at least 4 for each of 3 problems, 12 in all, got 11"):
        search_batch(plan_all, HARD[:3], strategy, 11)


def test_bad_totals_and_ids():
    with pytest.raises(ValueError, match="at least 4 for each of 8 problems, 32 in all, got 31"):
        search_batch(plan_all, EASY + HARD, gains_on_hard(), 31)
    with pytest.raises(ValueError, match=f"got '{EASY[0].id}' twice"):
        search_batch(plan_all, EASY + EASY[:1], gains_on_hard(), 64)
    assert search_batch(plan_all, [], gains_on_hard(), 0) == []


def test_a_sure_verifier_gives_what_it_saves_to_the_others():
    """All are promised 16; easy ones stop after a batch, as their leading answer has the score of the chance."""
    cells = [cell(index, BestOfN(stop=0.9), budget, right) for index in (0, 1) for budget, right in [(4, 20), (16, 60)]]
    made = calibration(cells, (0.7,), Predictor(num_samples=2))
    scores = {"1": 0.8}
    strategy = ComputeOptimal(replace(made, chances=((0.0, 0.1), (0.8, 0.95))))

    def search(problems, planner, budget):
        return [plan(planner, each, budget, FakeVerifier(lambda text: scores.get(text, 0.1))) for each in problems]

    hopeless = [problem_of(0, f"n{i}-") for i in range(4)]
    results = search_batch(search, EASY + hopeless, strategy, 80)
    assert spent(results)[:4] == [2] * 4, "sure from the pilot on"
    assert spent(results)[4:] == [16] * 4
    plain = search_batch(search, EASY + hopeless, ComputeOptimal(made), 80)
    assert spent(plain) == [16, 16, 16, 16, 4, 4, 4, 4], "a score of 0.8 is no chance of 0.9"


def test_one_that_closes_below_the_least_budget_keeps_no_more_than_it_spent():
    """Without a re-used pilot each is promised the 8 of beams; easy ones stop at 2, and all of the rest is spent."""
    predictor = Predictor("agreement", 4, is_reused=False)
    cells = [cell(0, Adaptive(vote="majority", batch=1, confidence=0.7), 8, 90)]
    cells += [cell(1, DVTS(width=8), each, right) for each, right in [(8, 10), (16, 30), (24, 60)]]
    results = search_batch(plan_all, EASY[:3] + HARD[:2], strategy_of(*cells, predictor=predictor), 42)
    assert max(spent(results)[:3]) <= 2
    assert spent(results)[3:] == [24, 8]


def test_a_part_that_was_too_small_to_spend_is_spent_once_others_have_saved():
    """In the first round the last problem is left with 6 after its pilot, of which DVTS can spend nothing."""
    easy = [cell(0, ADAPTIVE, 4, 20), cell(0, ADAPTIVE, 16, 80)]
    hard = [cell(1, DVTS(width=8), 12, 40)]
    results = search_batch(plan_all, [*EASY[:2], HARD[0]], strategy_of(*easy, *hard), 38)
    assert max(spent(results)[:2]) < 16
    assert spent(results)[2] == 12
    assert "dvts:width=8" in results[2].plan
