"""Divides one budget over many problems, by the greatest expected gain of the next generation."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import pairwise

Curve = tuple[tuple[int, float], ...]  # (generations, expected accuracy), rising, concave


def concave_envelope(points: Iterable[tuple[int, float]]) -> Curve:
    """The least concave curve that never falls and lies nowhere under the points.

    Beyond its last point it is flat: nothing is known to be gained there. With falling slopes the
    best next generation is part of the best division, so that a greedy choice is optimal; where a
    measured curve dips, the envelope bridges the dip. Raises ValueError without a point.
    """
    hull: list[tuple[int, float]] = []
    for budget, value in sorted(points):
        if hull and (value <= hull[-1][1] or budget == hull[-1][0]):
            if value <= hull[-1][1]:
                continue  # more would not help
            hull.pop()
        while len(hull) > 1 and _slope(hull[-1], (budget, value)) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append((budget, value))
    if not hull:
        raise ValueError("an accuracy curve needs at least one point, got none")
    return tuple(hull)


def value_at(curve: Curve, budget: int) -> float:
    """Expected accuracy at a budget, between points by the straight line; flat outside."""
    if budget <= curve[0][0]:
        return curve[0][1]
    for left, right in pairwise(curve):
        if budget <= right[0]:
            return left[1] + _slope(left, right) * (budget - left[0])
    return curve[-1][1]


def allocate(curves: Sequence[Curve], total: int, floors: Sequence[int] | None = None) -> list[int]:
    """Generations for each problem: the division of `total` with the greatest sum of expected accuracies.

    Each problem gets at least its floor (by default 0: what it has been promised or has spent), and
    nothing beyond the last point of its curve. What would gain nothing stays unspent, so that the
    sum is at most `total`. Equal gains go to the earliest problem, a whole straight piece at a time:
    all but one of those that are given more end at a budget that was measured. Raises ValueError for a total
    under the sum of the floors.
    """
    budgets = [0] * len(curves) if floors is None else list(floors)
    left = total - sum(budgets)
    if left < 0:
        raise ValueError(f"the total budget must be at least {sum(budgets)} for {len(curves)} problems, got {total}")
    heap: list[tuple[float, int, int]] = []  # (-gain per generation, problem, where that gain ends)

    def offer(problem: int) -> None:
        """Puts a problem's next straight piece up for choice."""
        for one, other in pairwise(curves[problem]):
            if other[0] > budgets[problem]:
                heapq.heappush(heap, (-_slope(one, other), problem, other[0]))
                return

    for problem in range(len(curves)):
        offer(problem)
    while heap and left:
        _, problem, end = heapq.heappop(heap)
        more = min(left, end - budgets[problem])
        budgets[problem] += more
        left -= more
        offer(problem)
    return budgets


def _slope(one: tuple[int, float], other: tuple[int, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])
