"""A strategy per problem by its difficulty, within the budget, with the prediction on the bill."""

import warnings

import pytest

from engine.scheduler import Assigned, Assignment, CalibrationWarning, ComputeOptimal, Predictor
from engine.search import DVTS, BeamSearch, BestOfN, Majority, Models
from engine.types import Problem
from tests.search.fakes import FakePolicy, FakeVerifier, arguments, drive, hashed_judge, random_draw

from .builders import calibration, cell, plan, problem_of, sampled

EASY, HARD = problem_of(97), problem_of(3)


def by_difficulty(predictor=None, hard=BestOfN()):  # noqa: B008 - frozen
    """Majority for the easy bin, best-of-n (or another) for the hard one."""
    cells = [cell(0, Majority(), 8, 90), cell(0, hard, 8, 80), cell(1, Majority(), 8, 10), cell(1, hard, 8, 20)]
    return ComputeOptimal(calibration(cells, [0.4], predictor))


def test_easy_and_hard_problems_are_searched_in_their_own_ways():
    results = [plan(by_difficulty(), problem, 12) for problem in (EASY, HARD)]
    assert "bin 1 of 2 (from 0.4): majority, budget 12" in results[0].plan
    assert "bin 2 of 2 (below 0.4): best-of-n, budget 12" in results[1].plan
    assert {result.strategy for result in results} == {"compute-optimal"}
    judged = [[bool(candidate.scores) for candidate in result.candidates] for result in results]
    assert judged == [[True] * 4 + [False] * 8, [True] * 12], "the pilot is scored: it might have been hard"


def test_the_pilot_is_part_of_the_budget_of_the_vote_and_of_the_bill():
    plain = sampled(Majority(), EASY, 12)
    result = plan(by_difficulty(), EASY, 12)
    assert [c.text for c in result.candidates] == [c.text for c in plain.candidates]
    assert (result.answer, result.correct, result.num_generations) == ("1", True, 12)
    tokens = result.ledger.tokens
    assert tokens["generated"] + tokens["estimation"] == plain.ledger.tokens["generated"]
    assert tokens["estimation"] == sum(candidate.num_tokens for candidate in result.candidates[:4])


@pytest.mark.parametrize("name", ["oracle", "score", "agreement"])
def test_samples_that_are_not_used_again_are_on_the_bill_alone(name):
    predictor = Predictor(name, 8, is_reused=False)
    result = plan(by_difficulty(predictor), EASY, 12)
    assert len(result.candidates) == result.num_generations == 12
    assert result.ledger.tokens["generated"] == sum(candidate.num_tokens for candidate in result.candidates)
    assert result.ledger.tokens["estimation"] >= 8


def test_a_pilot_whose_scores_nobody_needs_is_not_scored():
    cells = [cell(0, Majority(), 8, 90), cell(0, BestOfN(), 8, 80)]
    verifier = FakeVerifier(hashed_judge)
    strategy = ComputeOptimal(calibration(cells))
    assert strategy.is_scored
    plan(strategy, EASY, 8, verifier)
    assert verifier.num_calls == 0


def test_steps_too():
    """A pilot of whole answers, then beams: the answers of both vote, and nothing stays open."""
    strategy = ComputeOptimal(calibration([cell(0, BeamSearch(width=2), 8, 50)]))
    policy, verifier = FakePolicy(random_draw), FakeVerifier(hashed_judge)
    config, answers = arguments(budget=10)
    result = drive(strategy.search(Problem("p", "x", "1"), Models(policy, verifier), config, answers))
    assert [call["num_branches"] for call in policy.extends[:2]] == [4, 6]
    assert len(result.candidates) <= result.num_generations == 10
    assert (policy.num_open, verifier.num_open) == (0, 0)


def test_a_search_aborted_at_any_await_leaves_no_branch_open():
    for num_awaits in range(12):
        strategy = ComputeOptimal(calibration([cell(0, BeamSearch(width=2), 8, 50)]))
        policy, verifier = FakePolicy(random_draw), FakeVerifier(hashed_judge)
        problem = Problem("p", "x", "1")
        config, answers = arguments(budget=10)
        coroutine = strategy.search(problem, Models(policy, verifier), config, answers)
        for _ in range(num_awaits + 1):
            coroutine.send(None)
        coroutine.close()
        assert (policy.num_open, verifier.num_open) == (0, 0)


def test_the_same_seed_gives_the_same_result_and_another_another():
    first, again = plan(by_difficulty(), HARD, 12), plan(by_difficulty(), HARD, 12)
    assert (first.tree, first.candidates, first.plan) == (again.tree, again.candidates, again.plan)
    assert plan(by_difficulty(), HARD, 12, seed=1).candidates != first.candidates


def test_budgets_that_nothing_can_spend_are_refused_at_once():
    with pytest.raises(ValueError, match="at least the 4 samples of the difficulty pilot, got 3"):
        by_difficulty().groups(3)
    only_dvts = ComputeOptimal(calibration([cell(0, DVTS(width=4), 8, 50)]))
    only_dvts.groups(8)
    with pytest.raises(ValueError, match="none of dvts can spend a budget of 9"):
        only_dvts.groups(9)


def test_a_calibration_for_others_falls_back_with_a_warning():
    strategy = ComputeOptimal(by_difficulty().calibration, fallback=BestOfN(vote="naive"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert strategy.checked({"policy": "abc", "temperature": 1.0}) is strategy
    with pytest.warns(CalibrationWarning, match=r'policy was "abc", now "xyz".*best-of-n:vote=naive runs instead'):
        assert strategy.checked({"policy": "xyz", "temperature": 1.0}) == BestOfN(vote="naive")
    with pytest.warns(CalibrationWarning, match="temperature was 1.0, now 0.5"):
        assert by_difficulty().checked({"policy": "abc", "temperature": 0.5}) == Majority()


def test_a_calibration_may_be_a_file(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(by_difficulty().calibration.to_json())
    assert ComputeOptimal(path) == ComputeOptimal(str(path)) == by_difficulty()
    with pytest.raises(ValueError, match="nowhere"):
        ComputeOptimal("nowhere")


def test_plans_are_by_problem():
    plans = {EASY.id: Assignment(Majority(), 3), HARD.id: Assignment(BestOfN(), 5)}
    planned = Assigned(plans)
    assert [plan(planned, problem, 5).num_generations for problem in (EASY, HARD)] == [3, 5]
    assert planned.is_scored
    assert not Assigned({EASY.id: Assignment(Majority(), 3)}).is_scored
    with pytest.raises(ValueError, match="spends 5 generations, over the budget of 4"):
        planned.groups(4)
