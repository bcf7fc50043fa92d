"""From outcomes to a calibration, its file, and what it chooses."""

import json
import math
import re
from dataclasses import replace

import pytest

from engine.scheduler import Bins, Outcome, Predictor, cross_validate, measure, read_calibration
from engine.scheduler.calibration import parse_calibration
from engine.scheduler.measure import held_out
from engine.search import DVTS, BeamSearch, BestOfN, Majority, Rebase

from .builders import calibration, cell, majority_curve

BEAM, BEST = BeamSearch(width=4), BestOfN()


def outcomes_of(rule, num_problems=40, budgets=(4, 8), strategies=(BEST, BEAM)) -> list[Outcome]:
    """`rule(problem, strategy, budget)` says who is right; even problems are easy, odd ones hard."""
    return [
        Outcome(problem, 0.9 if problem % 2 == 0 else 0.2, each, budget, rule(problem, each, budget), budget, 10, 100)
        for each in strategies
        for budget in budgets
        for problem in range(num_problems)
    ]


def measured(outcomes, edges=(0.5,), **options):
    options = {"conditions": {"policy": "abc"}, "problems": "some", "predictor": Predictor(), **options}
    return measure(outcomes, bins=Bins(edges), **options)


def best_on_easy_beam_on_hard(problem, strategy, budget):
    return (problem % 2 == 0) == (strategy == BEST)


def test_cells_count_what_happened():
    found = measured(outcomes_of(lambda problem, each, budget: budget == 8 and problem < 10))
    assert (found.num_per_bin, found.budgets) == ((20, 20), (4, 8))
    counts = {(each.bin, each.strategy.name, each.budget): each.num_right for each in found.cells}
    assert counts == {
        (index, name, budget): 5 * (budget == 8)
        for index in (0, 1)
        for name in ("best-of-n", "beam")
        for budget in (4, 8)
    }
    assert {(each.num_problems, each.generations, each.tokens, each.flops) for each in found.cells} == {
        (20, 4, 10, 100),
        (20, 8, 10, 100),
    }


def test_the_best_strategy_of_a_bin_is_chosen():
    found = measured(outcomes_of(best_on_easy_beam_on_hard))
    assert [found.choose(index, 8).strategy for index in (0, 1)] == [BEST, BEAM]


def test_cross_validation_chooses_on_one_half_and_measures_on_the_other():
    outcomes = outcomes_of(best_on_easy_beam_on_hard)
    verdict = cross_validate(outcomes, Bins((0.5,)), 8)
    assert (verdict.compute_optimal, verdict.best_fixed, verdict.num_problems) == (1.0, 0.5, 40)

    # On every other problem of a bin one strategy is right, on the rest the other: what one fold
    # praises fails on the other, while the choice on all problems would promise a half.
    def traitor(problem, strategy, budget):
        return (problem // 2 % 2 == 0) == (strategy == BEST)

    by_turns = held_out(outcomes_of(traitor), Bins((0.5,)), 8)
    assert [sum(outcome.is_right for outcome in side) for side in by_turns] == [0, 0]
    verdict = cross_validate(outcomes_of(traitor), Bins((0.5,)), 8)
    assert 0.3 < verdict.compute_optimal < 0.5
    assert 0.3 < verdict.best_fixed < 0.5
    assert measured(outcomes_of(traitor)).choose(0, 8).accuracy == 0.5


def test_a_choice_goes_by_accuracy_then_cost_then_order():
    cells = [cell(0, BEST, 8, 50, flops=5.0), cell(0, BEAM, 8, 50, flops=3.0), cell(0, Rebase(), 8, 50, flops=3.0)]
    assert calibration(cells).choose(0, 8).strategy == BEAM
    assert calibration([*cells, cell(0, Majority(), 8, 51, flops=9.0)]).choose(0, 8).strategy == Majority()


def test_a_choice_reads_the_largest_measured_budget_that_is_not_above():
    cells = [cell(0, BEST, 4, 50), cell(0, BEST, 16, 50), cell(0, BEAM, 4, 40), cell(0, BEAM, 16, 60)]
    # Of 20 and more the pilot of 4 leaves beams of width 4 enough.
    found = [calibration(cells).choose(0, budget).strategy for budget in (8, 15, 16, 64)]
    assert found == [BEST, BEST, BEAM, BEAM]


def test_a_strategy_that_cannot_spend_the_rest_is_passed_over():
    dvts = DVTS(width=4)
    cells = [cell(0, dvts, 8, 90), cell(0, BEST, 8, 50)]
    assert [calibration(cells).choose(0, budget).strategy for budget in (8, 10, 12)] == [dvts, BEST, dvts]
    assert calibration(cells).choose(0, 10, num_spent=2).strategy == dvts
    assert calibration(cells).choose(0, 4).strategy == BEST, "nothing is left: only a vote remains"
    with pytest.raises(ValueError, match=r"none of dvts can spend a budget of 10 after the 4"):
        calibration(cells[:1]).choose(0, 10)


def test_curves_are_envelopes_from_nothing_on():
    found = calibration([*majority_curve(0, {4: 40, 8: 30, 16: 50}), cell(0, BEAM, 8, 46)])
    assert found.curve(0) == ((0, 0.0), (4, 0.4), (8, 0.46), (16, 0.5))


def test_a_bin_with_too_few_problems():
    outcomes = outcomes_of(best_on_easy_beam_on_hard, num_problems=12)
    assert measured(outcomes, min_per_bin=6).num_per_bin == (6, 6)
    with pytest.raises(ValueError, match=r"bin 1 of 2 \(from 0.5\) holds 6 of 12 problems, at least 7"):
        measured(outcomes, min_per_bin=7)
    with pytest.raises(ValueError, match="got min_per_bin 1"):
        measured(outcomes, min_per_bin=1)


def test_a_search_by_it_needs_a_verifier_where_something_is_scored():
    assert not calibration(majority_curve(0, {4: 40})).is_scored
    assert calibration([cell(0, BEST, 4, 40)]).is_scored
    assert calibration(majority_curve(0, {4: 40}), predictor=Predictor("score")).is_scored


def test_there_and_back(tmp_path):
    found = measured(outcomes_of(best_on_easy_beam_on_hard), predictor=Predictor("score", 16, is_reused=False))
    path = tmp_path / "calibration.json"
    path.write_text(found.to_json())
    assert read_calibration(path) == found
    assert json.loads(found.to_json())["cells"][0]["strategy"]["strategy"] == "best-of-n"
    assert all(len(line) < 300 for line in found.to_json().splitlines()), "one cell per line"


def test_differences_are_told():
    found = calibration(majority_curve(0, {4: 40}))
    assert found.differences({"policy": "abc", "temperature": 1.0}) == []
    assert found.differences({"policy": "xyz", "temperature": 1.0}) == ['policy was "abc", now "xyz"']
    assert found.differences({"policy": "abc"}) == ["temperature was 1.0, now null"]


def changed(name, value):
    return json.dumps({**json.loads(calibration(majority_curve(0, {4: 40})).to_json()), name: value})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", r"format must be 'ttc calibration 1', got '\[\]'"),
        ('{"format": "other"}', "'other'"),
        ('{"format": "ttc calibration 1"}', "lacks conditions, problems"),
        (changed("edges", [0.5, 0.1]), "must rise"),
        (changed("edges", [0.5]), "2 bins need as many counts"),
        (changed("edges", ["x"]), "another kind"),
        (changed("predictor", {"name": "tea leaves"}), "'tea leaves'"),
        (changed("predictor", {"leaves": 3}), "leaves"),
        (changed("cells", []), "nothing was measured in bin 1 of 1"),
        (changed("cells", [{"bin": 0}]), "a value is missing"),
        (changed("budgets", [8]), "budget 4, which the calibration lacks"),
        (changed("verdicts", [{"width": 3}]), "width"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        parse_calibration(text)
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path} is no calibration: ")):
        read_calibration(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chances": [[0.9, 0.5], [0.95, 0.4]]}, r"rise with their scores, got \[\(0.9, 0.5\), \(0.95, 0.4\)\]"),
        ({"chances": [[0.9, 0.5], [0.8, 0.6]]}, "rise with their scores, got"),
        ({"chances": [[0.9, 1.5]]}, r"within 0\.\.1 and rise"),
        ({"chances": [["high", 0.5]]}, "of another kind .*must be real number, not str"),
        ({"predictor": {"name": "probe", "num_samples": 0, "weights": ["a", 1.0]}}, "of another kind .*must be real"),
        ({"predictor": {"name": "probe", "num_samples": 0, "weights": [math.inf]}}, r"must be finite, got \(inf,\)"),
        ({"cells": [{"shrunk": 1.5}]}, r"expected accuracy must be within 0\.\.1, got 1\.5"),
    ],
)
def test_values_that_a_search_would_stumble_over(changes, words):
    data = json.loads(calibration(majority_curve(0, {4: 40})).to_json())
    changes = changes | ({"cells": [data["cells"][0] | changes["cells"][0]]} if "cells" in changes else {})
    parse_calibration(json.dumps(data))
    with pytest.raises(ValueError, match=words):
        parse_calibration(json.dumps(data | changes))


def test_impossible_counts_and_missing_files(tmp_path):
    found = calibration(majority_curve(0, {4: 40}))
    with pytest.raises(ValueError, match="101 of 100"):
        replace(found, cells=(cell(0, Majority(), 4, 101),))
    with pytest.raises(ValueError, match=r"cannot read a calibration from .*nowhere"):
        read_calibration(tmp_path / "nowhere")
