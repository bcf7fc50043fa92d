"""Uniform splits of a budget, and what an allocation gains over them at equal FLOPs and at equal accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine import SearchResult
from engine.results.statistics import bootstrap_interval

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """One way to search all problems; arrays hold a mean over seeds for every problem."""

    budget: int  # generations per problem, on average
    rights: np.ndarray  # 0..1
    flops: np.ndarray
    generations: float  # mean, spent

    @classmethod
    def of(cls, budget: int, runs: Sequence[Sequence[SearchResult]]) -> Point:
        """The point that the results of every seed make."""
        return cls(
            budget,
            np.mean([[bool(result.correct) for result in run] for run in runs], axis=0),
            np.mean([[result.ledger.total_flops for result in run] for run in runs], axis=0),
            float(np.mean([[result.num_generations for result in run] for run in runs])),
        )

    def as_dict(self) -> dict[str, object]:
        low, high = bootstrap_interval(self.rights.tolist(), range(len(self.rights)))
        return {
            "budget": self.budget,
            "accuracy": [float(self.rights.mean()), low, high],
            "flops": float(self.flops.mean()),
            "generations": self.generations,
        }


def compared(allocated: Point, uniform: Sequence[Point]) -> dict[str, object]:
    """An allocation against one uniform strategy: at equal FLOPs, and at equal accuracy."""
    points = sorted(uniform, key=lambda point: point.flops.mean())
    spent = [float(point.flops.mean()) for point in points]
    mixed = at_flops(points, float(allocated.flops.mean()))
    differences = allocated.rights - mixed
    low, high = bootstrap_interval(differences.tolist(), range(len(differences)))
    share, is_reached = flops_share(allocated.rights.mean(), allocated.flops.mean(), points, None)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(mixed), np.full(len(mixed), 1 / len(mixed)), size=NUM_RESAMPLES)
    shares = []
    for weights in counts / len(mixed):
        own = float(weights @ allocated.rights), float(weights @ allocated.flops)
        shares.append(flops_share(*own, points, weights)[0])
    return {
        "accuracy": float(allocated.rights.mean()),
        "accuracy_uniform": float(mixed.mean()),
        "points": [100 * float(differences.mean()), 100 * low, 100 * high],
        "flops": float(allocated.flops.mean()),
        "is_within_grid": bool(spent[0] <= allocated.flops.mean() <= spent[-1]),
        "flops_share": [share, *map(float, np.quantile(shares, [0.025, 0.975]))],
        "is_reached": is_reached,
    }


def at_flops(points: Sequence[Point], flops: float) -> np.ndarray:
    """Each problem's share of right answers under the uniform split that costs `flops`; flat beyond the grid's ends."""
    spent = [float(point.flops.mean()) for point in points]
    right = int(np.clip(np.searchsorted(spent, flops), 1, len(points) - 1))
    weight = np.clip((flops - spent[right - 1]) / (spent[right] - spent[right - 1]), 0.0, 1.0)
    return (1 - weight) * points[right - 1].rights + weight * points[right].rights


def flops_share(
    accuracy: float, flops: float, points: Sequence[Point], weights: np.ndarray | None
) -> tuple[float, bool]:
    """FLOPs over the least that a uniform split (points by rising FLOPs) needs for the same accuracy.

    The second value is False where none reaches it: the share is then that of the grid's largest,
    which is more than the true one. `weights` are those of the problems, by default equal.
    """
    curve = [
        (float(np.average(point.flops, weights=weights)), float(np.average(point.rights, weights=weights)))
        for point in points
    ]
    accuracy -= 1e-9  # equal shares of right answers, as means of means, differ by less
    if curve[0][1] >= accuracy:
        return flops / curve[0][0], True
    for (cost, value), (next_cost, next_value) in pairwise(curve):
        if next_value >= accuracy:
            return flops / (cost + (accuracy - value) / (next_value - value) * (next_cost - cost)), True
    return flops / curve[-1][0], False
