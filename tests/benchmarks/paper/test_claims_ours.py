"""What the project set out to show, on made-up tables whose answers are known: each claim can fail."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.paper.cells import SHIPPED
from benchmarks.paper.claims_ours import over_best_fixed, ratios_differ, share_of_flops
from benchmarks.paper.measured import Measured
from benchmarks.paper.rules import NOT_BELOW, Unmeasured, at_least, at_most
from tests.benchmarks.paper.test_paper_analysis import made_evidence, measured


@pytest.mark.parametrize(
    ("rule", "interval", "is_shown"),
    [
        (at_least(0.15), [0.2, 0.1, 0.3], True),
        (at_least(0.15), [0.14, 0.1, 0.3], False),  # less than was asked
        (at_least(0.15), [0.2, -0.01, 0.4], False),  # as much, but within its interval of nothing
        (at_least(-0.08), [-0.05, -0.1, 0.0], True),
        (at_least(-0.08), [-0.09, -0.1, 0.0], False),
        (at_most(0.25), [0.2, 0.18, 0.25], True),
        (at_most(0.25), [0.2, 0.18, 0.26], False),
        (NOT_BELOW, [-0.01, -0.03, 0.01], True),
        (NOT_BELOW, [-0.02, -0.03, -0.01], False),
    ],
)
def test_what_is_asked(rule, interval, is_shown):
    assert rule.decide(interval)[0] is is_shown


def test_the_scheduler_is_held_against_the_best_of_all_strategies():
    evidence = made_evidence()
    evidence.tables[SHIPPED] = {256: measured(np.ones(100)), 64: measured(np.zeros(100))}
    best = over_best_fixed(256)(evidence)
    assert best.value[0] == pytest.approx(0.5)
    assert set(best.parts.values()) == {1.0, 0.5}
    assert over_best_fixed(64)(evidence).value[0] == pytest.approx(-0.5)


def test_flops_are_a_share_of_the_other_sides_mean():
    def costing(flops: np.ndarray) -> Measured:
        return Measured(np.ones(100), np.ones(100), flops, np.zeros(100), 1)

    evidence = made_evidence()
    evidence.tables["dear"] = {64: costing(np.full(100, 10.0))}
    evidence.tables["cheap"] = {64: costing(np.tile([1.0, 39.0], 50))}  # some problems cost more than the others' mean
    mean, low, high = share_of_flops(("cheap", 64), ("dear", 64))(evidence).value
    assert mean == pytest.approx(2.0)
    assert low < mean < high
    evidence.tables["dear"] = {64: costing(np.tile([2.0, 78.0], 50))}  # twice as much of every problem
    assert share_of_flops(("cheap", 64), ("dear", 64))(evidence).value == pytest.approx([0.5, 0.5, 0.5])


def test_ratios_are_chosen_and_measured_on_different_problems():
    eases = np.linspace(0, 1, 100)
    easy = (eases > 0.5).astype(float)
    sides = {1: measured(easy), 64: measured(1 - easy)}
    differing = made_evidence(ratios={64: {count: (each, each) for count, each in sides.items()}})
    found = ratios_differ(64)(differing)
    assert found.value[0] == pytest.approx(1.0)
    assert found.note == "1 chains for easy, 64 for hard problems; 1 chains for easy, 64 for hard problems"
    equal = made_evidence(ratios={64: {1: (sides[1], sides[1]), 64: (sides[1], sides[1])}})
    assert ratios_differ(64)(equal).value[0] == 0.0
    with pytest.raises(Unmeasured, match="ratios of revisions at 64"):
        ratios_differ(64)(made_evidence())
