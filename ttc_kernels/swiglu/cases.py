"""Inputs for swiglu's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    num_rows: int
    size: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """An exponential and a division counted as one each."""
        return self.num_rows * self.size * 5

    @property
    def num_bytes(self) -> int:
        return 3 * self.num_rows * self.size * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> dict:
        """Keyword arguments of swiglu."""
        generator = torch.Generator().manual_seed(seed)
        gate_up = 3 * torch.randn(self.num_rows, 2 * self.size, generator=generator)
        return {"gate_up": gate_up.to(self.dtype)}


def tiny() -> list[Case]:
    sizes = [(1, 1), (3, 7), (5, 16), (2, 33), (4, 256), (3, 85)]
    return [Case(*size, dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]


def full() -> list[Case]:
    """The home model at decode, and a 1.5B one at decode and at prefill."""
    sizes = [(256, 256), (1024, 256), (256, 8960), (2048, 8960)]
    return [Case(*size, dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]
