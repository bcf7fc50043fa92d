"""Compute-optimal: the best series of every difficulty bin, chosen on one half of it and measured on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.paper.difficulty import Binning
from benchmarks.paper.measured import Measured
from engine.scheduler import Bins, Outcome
from engine.scheduler.measure import held_out

_COLUMNS = ("right", "generations", "flops", "verified")  # of a Measured, an array each


@dataclass(frozen=True)
class Optimal:
    """Held-out figures per problem at one budget."""

    measured: Measured
    fixed: Measured  # the one series that is best for all bins, chosen and measured on the same folds
    choices: tuple[dict[str, int], ...]  # per bin: problems by the series chosen for them


def compute_optimal(
    series: Mapping[str, Measured],
    binning: Binning,
    budget: int,
    folds: Mapping[int, int] | None = None,
) -> Optimal:
    """Two-fold cross-validation inside each bin (paper, section 3.2) over the series measured at a budget.

    `folds` are those of `held_out`, and so is the shrinkage.
    """
    outcomes = [
        Outcome(
            problem=index,
            ease=float(binning.eases[index]),
            strategy=name,
            budget=budget,
            is_right=float(each.right[index]),
            generations=float(each.generations[index]),
            tokens=0,
            flops=float(each.flops[index]),
        )
        for name, each in series.items()
        for index in range(len(each.right))
    ]
    chosen, fixed = held_out(outcomes, binning.bins, budget, folds=folds)
    return Optimal(_gather(series, chosen), _gather(series, fixed), _choices(chosen, binning.bins))


def _gather(series: Mapping[str, Measured], outcomes: Sequence[Outcome]) -> Measured:
    """The figures of every problem under the series that was chosen for it."""
    chosen = [each.strategy for each in sorted(outcomes, key=lambda each: each.problem)]

    def column(name: str) -> np.ndarray:
        return np.array([getattr(series[each], name)[index] for index, each in enumerate(chosen)])

    num_seeds = min(each.num_seeds for each in series.values())
    return Measured(*map(column, _COLUMNS), num_seeds)


def _choices(outcomes: Sequence[Outcome], bins: Bins) -> tuple[dict[str, int], ...]:
    counts = [Counter() for _ in range(bins.count)]
    for each in outcomes:
        counts[bins.index(each.ease)][each.strategy] += 1
    return tuple(dict(count.most_common()) for count in counts)


def one_after_another(parts: Sequence[Measured]) -> Measured:
    """Seeds that were measured apart, end to end: arrays of (num_seeds * num_problems,)."""
    return Measured(*(np.concatenate([getattr(each, name) for each in parts]) for name in _COLUMNS), num_seeds=1)


def seed_means(measured: Measured, num_seeds: int) -> Measured:
    """The means over seeds of figures that `one_after_another` has put end to end: (num_problems,) again."""
    columns = [getattr(measured, name).reshape(num_seeds, -1).mean(axis=0) for name in _COLUMNS]
    return Measured(*columns, num_seeds)


def charged(measured: Measured, generations: float, flops: np.ndarray, verified: np.ndarray) -> Measured:
    """The figures with the cost of estimating difficulty added to every problem's bill."""
    bill = (measured.generations + generations, measured.flops + flops, measured.verified + verified)
    return Measured(measured.right, *bill, measured.num_seeds)
