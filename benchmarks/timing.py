"""The one timer: calls on a device, sides of a comparison turn by turn, and the rates that figures are held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch

from engine.reports.progress import Progress

Call = Callable[[], object]


class Missing(Exception):
    """This side of a comparison cannot be timed; the message says why."""


@dataclass(frozen=True)
class Run:
    """One timed call."""

    seconds: float
    num_tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


def seconds_of(call: Call) -> float:
    """The wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timed(side: Callable[[], int]) -> Run:
    """Calls a side once; it returns how many tokens it has made."""
    start = time.perf_counter()
    num_tokens = side()
    return Run(time.perf_counter() - start, num_tokens)


def alternate(
    sides: Mapping[str, Callable[[int], int]], num_repeats: int, progress: Progress | None = None
) -> dict[str, list[Run]]:
    """Times every side in turn, so that a slow minute of the machine hits all of them.

    A side is called with the number of the repeat, its seed. Each call is a part of `progress`.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for repeat in range(num_repeats):
        for name, side in sides.items():
            runs[name].append(timed(partial(side, repeat)))
            if progress is not None:
                progress.advance(name)
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


@dataclass(frozen=True)
class Clock:
    """The median seconds of a call, over as many repeats as fit `max_seconds`.

    On a CPU: the wall clock, after a warm-up, on caches as the call before left them. On a GPU: triton's
    `do_bench`, which empties the L2 cache before every call, of a replayed CUDA graph; of the call itself
    where it cannot be captured.
    """

    device: str  # "cpu" or "cuda"
    max_seconds: float = 0.25
    max_repeats: int = 200

    def median(self, call: Call) -> tuple[float, str]:
        """(seconds, how they were taken)."""
        if self.device == "cuda":
            return self._on_gpu(call)
        once = seconds_of(call)
        if once < 4 * self.max_seconds:
            once = seconds_of(call)  # the first call has touched fresh pages
        num_repeats = max(1, min(self.max_repeats, int(self.max_seconds / max(once, 1e-9))))
        return statistics.median(seconds_of(call) for _ in range(num_repeats)), "wall clock"

    def _on_gpu(self, call: Call) -> tuple[float, str]:
        from triton.testing import do_bench  # there is none where there is no GPU

        call()
        torch.cuda.synchronize()
        replay, timer = captured(call)
        milliseconds = do_bench(replay, warmup=10, rep=self.max_seconds * 1e3, return_mode="median")
        return milliseconds / 1e3, timer

    def copy_bandwidth(self, num_bytes: int | None = None) -> float:
        """Bytes per second of a copy far larger than the caches, bytes read and written counted."""
        size = num_bytes or (1 << 30 if self.device == "cuda" else 1 << 28)
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        seconds, _ = self.median(lambda: target.copy_(source))
        return 2 * size / seconds

    def matmul_rate(self, dtype: torch.dtype, size: int | None = None) -> float:
        """FLOP/s of a large square matrix product of random data."""
        size = size or (8192 if self.device == "cuda" else 1536)
        left, right = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds, _ = self.median(lambda: torch.mm(left, right, out=out))
        return 2 * size**3 / seconds


def captured(call: Call) -> tuple[Call, str]:
    """The replay of a CUDA graph of `call`, or `call` where it synchronizes or allocates outside the graph."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except Exception as error:  # torch raises several types for what a capture forbids
        torch.cuda.synchronize()
        return call, f"do_bench, not captured ({type(error).__name__})"
    return graph.replay, "do_bench, CUDA graph"
