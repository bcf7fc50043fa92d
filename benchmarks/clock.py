"""Timing one call on a device, and the rates of that device that a figure is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.hardware import hardware
from engine.model import resolve_device

Call = Callable[[], object]


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
        once = _elapsed(call)
        if once < 4 * self.max_seconds:
            once = _elapsed(call)  # the first call has touched fresh pages
        num_repeats = max(1, min(self.max_repeats, int(self.max_seconds / max(once, 1e-9))))
        times = [_elapsed(call) for _ in range(num_repeats)]
        return statistics.median(times), "wall clock"

    def _on_gpu(self, call: Call) -> tuple[float, str]:
        from triton.testing import do_bench  # there is none where there is no GPU

        call()
        torch.cuda.synchronize()
        replay, timer = captured(call)
        milliseconds = do_bench(replay, warmup=10, rep=self.max_seconds * 1e3, return_mode="median")
        return milliseconds / 1e3, timer


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


def copy_bandwidth(clock: Clock, num_bytes: int | None = None) -> float:
    """GB/s of a copy far larger than the caches, bytes read and written counted."""
    size = num_bytes or (1 << 30 if clock.device == "cuda" else 1 << 28)
    source = torch.ones(size, dtype=torch.uint8, device=clock.device)
    target = torch.zeros_like(source)
    seconds, _ = clock.median(lambda: target.copy_(source))
    return 2 * size / seconds / 1e9


def matmul_rate(clock: Clock, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a large square matrix product of random data."""
    size = size or (8192 if clock.device == "cuda" else 1536)
    left, right = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds, _ = clock.median(lambda: torch.mm(left, right, out=out))
    return 2 * size**3 / seconds


def machine(device: str) -> dict[str, object]:
    """What a figure was measured on; on a GPU its name, its memory and what drives it too.

    Raises UserError where torch finds no GPU.
    """
    facts = hardware()
    if device != "cuda":
        return facts
    check_device(device)
    gpu = torch.cuda.get_device_properties(0)
    return facts | {
        "gpu": gpu.name,
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1),
        "num_multiprocessors": gpu.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def check_device(device: str) -> None:
    """Raises UserError for a device that is none of ours, or that torch does not find."""
    resolve_device(device)


def _elapsed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
