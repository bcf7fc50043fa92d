"""What a problem's difficulty is predicted from, and its bin."""

import pytest

from engine.scheduler import ABSOLUTE_EDGES, Bins, PilotSamples, Predictor
from engine.search import Majority
from engine.types import Problem
from tests.search.fakes import FakeVerifier

from .builders import plan, problem_of, sampled


def test_each_predictor_reads_its_own_evidence():
    problem = problem_of(40)
    samples = plan(PilotSamples(Predictor("score", 8), True), problem, 8)
    answers = [candidate.answer for candidate in samples.candidates]
    num_right = answers.count("1")
    assert 0 < num_right < 8
    assert Predictor("oracle", 8, is_reused=False).value(samples) == num_right / 8
    mean = sum(candidate.agg_score for candidate in samples.candidates) / 8
    assert Predictor("score", 8).value(samples) == pytest.approx(mean)
    pairs = [answers[i] == answers[j] for i in range(8) for j in range(8) if i != j]
    assert Predictor("agreement", 8).value(samples) == pytest.approx(sum(pairs) / 56)


def test_easier_problems_agree_more():
    predictor = Predictor("agreement", 16)
    values = [predictor.value(sampled(Majority(), problem_of(percent), 16)) for percent in (5, 50, 95)]
    assert values == sorted(values)
    assert values[0] < 0.3 < 0.7 < values[2]


def test_the_oracle_uses_the_grader():
    samples = sampled(Majority(), problem_of(50), 8)
    oracle = Predictor("oracle", 8, is_reused=False)
    assert oracle.value(samples, lambda answer, gold: True) == 1.0
    assert oracle.value(samples, lambda answer, gold: None) == 0.0, "what cannot be graded is not right"


def test_all_that_is_spent_on_a_prediction_is_estimation():
    plain = sampled(Majority(), problem_of(50), 6)
    samples = plan(PilotSamples(Predictor("agreement", 6), False), problem_of(50), 6)
    assert samples.candidates == plain.candidates
    assert {purpose for purpose, count in samples.ledger.tokens.items() if count} == {"estimation"}
    assert samples.ledger.tokens["estimation"] == plain.ledger.tokens["generated"]


def test_samples_that_are_not_used_again_are_drawn_apart():
    plain = sampled(Majority(), problem_of(50), 12)
    apart = plan(PilotSamples(Predictor("agreement", 12, is_reused=False), True), problem_of(50), 12)
    assert [c.text for c in apart.candidates] != [c.text for c in plain.candidates]
    assert apart.problem == problem_of(50)


@pytest.mark.parametrize(
    ("predictor", "is_judged", "num_calls"),
    [
        (Predictor("score", 4), False, 2),
        (Predictor("agreement", 4), True, 2),
        (Predictor("agreement", 4, is_reused=False), True, 0),  # no vote will look at them
        (Predictor("oracle", 4, is_reused=False), True, 0),
    ],
    ids=str,
)
def test_samples_are_scored_where_scores_are_used(predictor, is_judged, num_calls):
    verifier = FakeVerifier(lambda text: 0.5)
    plan(PilotSamples(predictor, is_judged), problem_of(50), 4, verifier)
    assert verifier.num_calls == num_calls


def test_a_score_that_is_no_number_counts_as_a_failure():
    samples = plan(
        PilotSamples(Predictor("score", 4), True), problem_of(100), 4, FakeVerifier(lambda text: float("nan"))
    )
    assert Predictor("score", 4).value(samples) == 0.0
    assert Predictor("agreement", 4).value(samples) == 0.0


def test_the_oracle_needs_an_answer():
    with pytest.raises(ValueError, match="problem 'x' has none"):
        plan(PilotSamples(Predictor("oracle", 2, is_reused=False), False), Problem("x", "50"), 2)


def test_bins_count_from_the_easiest():
    bins = Bins(ABSOLUTE_EDGES)
    assert [bins.index(value) for value in (1.0, 0.5, 0.49, 0.1, 0.09, 0.0)] == [0, 0, 1, 1, 2, 2]
    assert bins.describe(0) == "bin 1 of 3 (from 0.5)"
    assert bins.describe(1) == "bin 2 of 3 (from 0.1, below 0.5)"
    assert bins.describe(2) == "bin 3 of 3 (below 0.1)"
    assert (Bins().count, Bins().index(0.3), Bins().describe(0)) == (1, 0, "bin 1 of 1")


def test_quintiles_hold_a_fifth_each():
    values = [((37 * i) % 100) / 100 for i in range(100)]
    bins = Bins.quantiles(values)
    assert [sum(bins.index(value) == index for value in values) for index in range(5)] == [20] * 5


def test_equal_values_share_a_bin_and_no_bin_is_empty():
    values = [0.0] * 50 + [1 / 6] * 5 + [0.5] * 15 + [1.0] * 30
    bins = Bins.quantiles(values)
    counts = [sum(bins.index(value) == index for value in values) for index in range(bins.count)]
    assert counts == [30, 15, 5, 50]
    joined = Bins.quantiles(values, least=10)
    assert [sum(joined.index(value) == index for value in values) for index in range(joined.count)] == [30, 20, 50]
    assert Bins.quantiles(values, least=60) == Bins.quantiles([0.5] * 9) == Bins()
    assert Bins.quantiles([0.1, 0.9], 5).count == 2
    noise = [1.0] * 9 + [1 + 2**-52] * 9 + [1 + 2**-51] * 9  # of a probe: no edge is between neighbouring floats
    bins = Bins.quantiles(noise)
    assert {bins.index(value) for value in noise} == set(range(bins.count))


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: Predictor("crystal ball"), "'crystal ball'"),
        (lambda: Predictor("agreement", 1), "samples of predictor agreement must be at least 2, got 1"),
        (lambda: Predictor("score", 0), "got 0"),
        (lambda: Predictor("score", 10**9), "got 1000000000"),
        (lambda: Predictor("oracle", 8), "must not be re-used"),
        (lambda: Bins((0.5, 0.1)), r"\[0.5, 0.1\]"),
        (lambda: Bins((0.1, 0.1)), "must rise"),
        (lambda: Bins((float("nan"),)), "must rise"),
        (lambda: Bins.quantiles([0.1], 0), "got 0"),
    ],
)
def test_bad_values_are_named(make, received):
    with pytest.raises(ValueError, match=received):
        make()
