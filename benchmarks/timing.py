"""Timing several sides of one comparison, turn by turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Run:
    """One timed call."""

    seconds: float
    num_tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


def timed(side: Callable[[], int]) -> Run:
    """Calls a side once; it returns how many tokens it has made."""
    start = time.perf_counter()
    num_tokens = side()
    return Run(time.perf_counter() - start, num_tokens)


def alternate(sides: Mapping[str, Callable[[int], int]], num_repeats: int) -> dict[str, list[Run]]:
    """Times every side in turn, so that a slow minute of the machine hits all of them.

    A side is called with the number of the repeat, its seed.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for repeat in range(num_repeats):
        for name, side in sides.items():
            runs[name].append(timed(partial(side, repeat)))
    return runs


def median_rate(runs: list[Run]) -> float:
    """Tokens per second, the median of the repeats."""
    return statistics.median(run.tokens_per_second for run in runs)


def raw(runs: list[Run]) -> list[dict[str, float]]:
    """All repeats, as they go into the report."""
    return [{"seconds": run.seconds, "num_tokens": run.num_tokens} for run in runs]
