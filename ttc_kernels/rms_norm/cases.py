"""Inputs for rms_norm's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    num_rows: int
    hidden: int
    dtype: torch.dtype
    has_residual: bool

    @property
    def flops(self) -> int:
        return self.num_rows * self.hidden * (5 if self.has_residual else 4)

    @property
    def num_bytes(self) -> int:
        """Read and written once: x and the result, the residual both ways, the weight."""
        passes = 4 if self.has_residual else 2
        return (passes * self.num_rows + 1) * self.hidden * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> dict:
        """Keyword arguments of rms_norm."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        return {
            "x": normal(self.num_rows, self.hidden),
            "weight": 1 + 0.1 * normal(self.hidden),
            "eps": 1e-6,
            "residual": 3 * normal(self.num_rows, self.hidden) if self.has_residual else None,
        }


def tiny() -> list[Case]:
    sizes = [(1, 1), (3, 7), (5, 16), (2, 33), (4, 96), (3, 64 + 16 + 5), (2, 257)]
    dtypes = (torch.float32, torch.bfloat16)
    return [Case(*size, dtype, has) for size in sizes for dtype in dtypes for has in (False, True)]


def full() -> list[Case]:
    """The home model at decode, and a 1.5B one at decode and at prefill."""
    sizes = [(256, 96), (1024, 96), (256, 1536), (2048, 1536)]
    return [Case(*size, dtype, True) for size in sizes for dtype in (torch.float32, torch.bfloat16)]
