"""Envelopes are concave and touch the points; the greedy division is the best one."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler import allocate, concave_envelope, value_at

points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 20).map(lambda i: i / 20)), min_size=1, max_size=6)


def test_an_envelope_bridges_dips_and_never_falls():
    assert concave_envelope([(0, 0.0), (1, 0.3), (2, 0.2), (4, 0.6)]) == ((0, 0.0), (1, 0.3), (4, 0.6))
    assert concave_envelope([(4, 0.6), (0, 0.0), (8, 0.5)]) == ((0, 0.0), (4, 0.6))
    assert concave_envelope([(0, 0.0), (2, 0.1), (4, 0.4)]) == ((0, 0.0), (4, 0.4))
    assert concave_envelope([(2, 0.1), (2, 0.3)]) == ((2, 0.3),)
    with pytest.raises(ValueError, match="got none"):
        concave_envelope([])


@settings(max_examples=200)
@given(points)
def test_an_envelope_is_the_least_concave_curve_over_its_points(some):
    curve = concave_envelope(some)
    assert set(curve) <= set(some), "it touches points and invents none"
    first = curve[0][0]
    assert all(value_at(curve, budget) >= value - 1e-12 for budget, value in some if budget >= first)
    values = [value_at(curve, budget) for budget in range(first, 12)]
    steps = [after - before for before, after in pairwise(values)]
    assert all(step >= -1e-12 for step in steps)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(steps))


@settings(max_examples=150, deadline=None)
@given(st.lists(points, min_size=1, max_size=4), st.integers(0, 20), st.data())
def test_greedy_is_optimal_and_never_overshoots(many, total, data):
    curves = [concave_envelope([(0, 0.0), *some]) for some in many]
    floors = [data.draw(st.integers(0, total // len(curves))) for _ in curves]
    budgets = allocate(curves, total, floors)
    assert sum(budgets) <= total
    assert all(budget >= floor for budget, floor in zip(budgets, floors, strict=True))
    best = {0: 0.0}  # the greatest sum of accuracies by generations spent, problem by problem
    for curve, floor in zip(curves, floors, strict=True):
        after: dict[int, float] = {}
        for spent, value in best.items():
            for budget in range(floor, total - spent + 1):
                found = value + value_at(curve, budget)
                after[spent + budget] = max(after.get(spent + budget, 0.0), found)
        best = after
    reached = sum(value_at(curve, budget) for curve, budget in zip(curves, budgets, strict=True))
    assert reached == pytest.approx(max(best.values()))


def test_who_gains_most_is_served_first_and_nobody_beyond_what_helps():
    steep, flat = ((0, 0.0), (4, 0.8), (8, 0.9)), ((0, 0.0), (4, 0.4))
    assert allocate([flat, steep], 4) == [0, 4]
    assert allocate([flat, steep], 6) == [2, 4]
    assert allocate([flat, steep], 100) == [4, 8], "the rest would gain nothing and stays unspent"
    assert allocate([flat, flat], 4) == [4, 0], "equal gains go to the earliest"
    assert allocate([flat, steep], 6, [3, 0]) == [3, 3]
    assert allocate([], 6) == []


def test_a_total_under_the_floors():
    with pytest.raises(ValueError, match="at least 8 for 2 problems, got 7"):
        allocate([((0, 0.0),)] * 2, 7, [4, 4])
