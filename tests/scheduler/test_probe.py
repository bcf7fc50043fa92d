"""Difficulty from the policy's hidden state at the end of the prompt."""

from dataclasses import replace

import numpy as np
import pytest

from engine.scheduler import ComputeOptimal, PilotSamples, Predictor, search_batch
from engine.scheduler.probe import apply, fit_probe
from engine.search import BestOfN, Majority, Models
from tests.search.fakes import FakeVerifier, arguments, drive, hashed_judge

from .builders import ProblemPolicy, calibration, cell, plan, problem_of


def studied(num_problems: int, width: int = 60, noise: float = 0.1, seed: int = 0):
    """States, of which two directions say how easy a problem is, and a score that says something else about it."""
    rng = np.random.default_rng(seed)
    states = rng.normal(0, 1, (num_problems, width)) * rng.uniform(0.1, 3, width)
    told, score = states[:, 0] / states[:, 0].std() - states[:, 1] / states[:, 1].std(), rng.normal(0, 1, num_problems)
    eases = 0.5 + 0.1 * told + 0.1 * score + rng.normal(0, noise, num_problems)
    return np.column_stack([states, score]), eases


def correlation(one, other) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def test_a_probe_finds_what_a_state_tells_and_is_judged_on_problems_it_has_not_seen():
    features, eases = studied(150)
    states = features[:, :-1]
    weights, held = fit_probe(states, eases, has_score=False)
    more, wanted = studied(2000, seed=1)
    assert len(weights) == 61
    assert correlation(held, eases) > 0.5
    assert abs(correlation(held, eases) - correlation(apply(weights, more[:, :-1]), wanted)) < 0.15
    assert correlation(apply(weights, states), eases) > correlation(held, eases), "what was seen is said too well"


def test_a_score_beside_the_state_tells_more_than_either():
    features, eases = studied(150)
    weights, held = fit_probe(features, eases, has_score=True)
    assert len(weights) == 62
    assert correlation(held, eases) > correlation(fit_probe(features[:, :-1], eases, has_score=False)[1], eases) + 0.1
    assert correlation(held, eases) > correlation(features[:, -1], eases) + 0.1


def test_states_that_tell_nothing_predict_the_mean():
    rng = np.random.default_rng(0)
    weights, held = fit_probe(np.ones((40, 8)), rng.random(40), has_score=False)
    assert not any(weights[1:])
    assert held.std() < 0.1


class StatePolicy(ProblemPolicy):
    """Its state at the end of a prompt is the share of right answers, and a constant."""

    async def open(self, prompt, *, ledger, history=()):
        branch = await super().open(prompt, ledger=ledger, history=history)
        self.state = [self.percent / 100, 1.0]
        return branch


def probed(planner, problem, budget, verifier=None):
    policy, verifier = StatePolicy(), verifier or FakeVerifier(hashed_judge)
    config, answers = arguments(budget=budget)
    result = drive(planner.search(problem, Models(policy, verifier), config, answers))
    assert (policy.num_open, verifier.num_open) == (0, 0)
    return result


PROBE = Predictor("probe", 0, weights=(0.0, 1.0, 0.0))
CELLS = [cell(0, Majority(), 8, 90), cell(1, BestOfN(), 8, 20)]


def test_a_probe_draws_no_samples_and_its_prompt_is_on_the_bill():
    planner = ComputeOptimal(calibration(CELLS, [0.5], PROBE))
    easy, hard = (probed(planner, problem_of(percent), 8) for percent in (90, 10))
    assert "ease 0.9, bin 1 of 2 (from 0.5): majority, budget 8" in easy.plan
    assert "ease 0.1, bin 2 of 2 (below 0.5): best-of-n, budget 8" in hard.plan
    assert len(easy.candidates) == easy.num_generations == 8
    assert easy.ledger.tokens["estimation"] == 7, "the prompt's tokens"
    assert easy.ledger.tokens["generated"] == sum(each.num_tokens for each in easy.candidates)


def test_a_probe_with_a_score_reads_samples_that_vote():
    predictor = Predictor("probe+score", 2, weights=(0.0, 0.0, 0.0, 1.0))
    planner = ComputeOptimal(calibration(CELLS, [0.5], predictor))
    assert planner.is_scored
    result = probed(planner, problem_of(90), 8, FakeVerifier(lambda text: 0.25))
    assert "ease 0.25, bin 2" in result.plan
    assert len(result.candidates) == result.num_generations == 8
    assert result.ledger.tokens["estimation"] > 7


def test_one_budget_is_divided_by_a_probe_alone():
    cells = [cell(0, Majority(), 1, 95), cell(1, Majority(), 1, 20), cell(1, Majority(), 12, 60)]
    planner = ComputeOptimal(calibration(cells, [0.5], PROBE))
    problems = [problem_of(90, "e"), problem_of(10, "h"), problem_of(20, "h")]

    def search(problems, planner, budget):
        assert budget >= 1
        planner.groups(budget)
        return [probed(planner, problem, budget) for problem in problems]

    results = search_batch(search, problems, planner, 20)
    assert [each.num_generations for each in results] == [1, 12, 7]
    assert all(each.ledger.tokens["estimation"] == 7 for each in results)


def test_what_a_probe_cannot_be():
    with pytest.raises(ValueError, match="samples of predictor probe must be"):
        Predictor("probe", 4)
    with pytest.raises(ValueError, match="predictor probe needs the weights of its probe, got none"):
        calibration(CELLS, [0.5], Predictor("probe", 0))
    wide = ComputeOptimal(calibration(CELLS, [0.5], replace(PROBE, weights=(0.0, 1.0))))
    with pytest.raises(ValueError, match="a probe of 2 features has as many weights and a constant, got 2"):
        probed(wide, problem_of(50), 8)
    samples = plan(PilotSamples(Predictor("agreement", 2), is_judged=False), problem_of(50), 2)
    assert samples.prompt_state == ()


@pytest.mark.parametrize("has_score", [False, True])
@pytest.mark.parametrize("num_problems", [0, 2, 3])
def test_a_probe_needs_a_few_problems(num_problems, has_score):
    features, eases = np.random.default_rng(0).random((num_problems, 4)), np.linspace(0, 1, num_problems)
    if num_problems == 3:
        assert np.isfinite(fit_probe(features, eases, has_score)[1]).all()
        return
    with pytest.raises(ValueError, match=f"at least 3 problems that it is fitted to, got {num_problems}"):
        fit_probe(features, eases, has_score)
