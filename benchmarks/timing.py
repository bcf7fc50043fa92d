"""Timing the sides of one comparison, turn by turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
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


def faster(side: Callable[[str], int], names: Iterable[str]) -> tuple[str, dict[str, float]]:
    """The name with which a side is fastest, and its tokens per second with each; warms all of them up."""
    rates = {}
    for name in names:
        side(name)
        rates[name] = timed(partial(side, name)).tokens_per_second
    return max(rates, key=rates.__getitem__), rates


def median_rate(runs: list[Run]) -> float:
    """Tokens per second, the median of the repeats."""
    return statistics.median(run.tokens_per_second for run in runs)


def median_seconds(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def compare(runs: Mapping[str, list[Run]]) -> dict[str, object]:
    """Rates of the sides "theirs", "ours" and "ours_batched", our speed-ups, and all repeats."""
    rates = {name: median_rate(side) for name, side in runs.items()}
    return {
        "speedup": rates["ours"] / rates["theirs"],
        "speedup_batched": rates["ours_batched"] / rates["theirs"],
        **{f"{name}_tokens_per_second": rate for name, rate in rates.items()},
        "runs": {name: [asdict(run) for run in side] for name, side in runs.items()},
    }
