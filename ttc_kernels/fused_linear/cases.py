"""Inputs for fused_linear's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    num_rows: int
    num_out: int
    width: int
    dtype: torch.dtype
    has_norm: bool = False
    has_residual: bool = False
    is_gated: bool = False

    @property
    def flops(self) -> int:
        """Two for each multiply-add of the product; the rest is a thousandth of them."""
        return 2 * self.num_rows * self.num_weights

    @property
    def num_weights(self) -> int:
        return self.num_out * self.width * (2 if self.is_gated else 1)

    @property
    def num_bytes(self) -> int:
        """Read and written once: the weights, the rows, the result, and the residual as it was."""
        results = self.num_rows * self.num_out * (2 if self.has_residual else 1)
        norm = self.width if self.has_norm else 0
        return (self.num_weights + norm + self.num_rows * self.width + results) * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> dict:
        """Keyword arguments of fused_linear; the rows that are normed differ in size."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        x, weight = normal(self.num_rows, self.width), normal(self.num_weights // self.width, self.width)
        if self.has_norm:
            x *= torch.logspace(-1, 1, self.num_rows)[:, None]
        return {
            "x": x.to(self.dtype),
            "weight": (weight * self.width**-0.5).to(self.dtype),
            "norm": (1 + 0.1 * normal(self.width)).to(self.dtype) if self.has_norm else None,
            "eps": 1e-6,
            "residual": (3 * normal(self.num_rows, self.num_out)).to(self.dtype) if self.has_residual else None,
            "is_gated": self.is_gated,
        }


def tiny() -> list[Case]:
    """A layer's four products and two others, of odd sizes: less than a tile, several tiles, several splits."""
    kinds = [
        {"has_norm": True},
        {"has_residual": True},
        {"has_norm": True, "is_gated": True},
        {},
        {"has_norm": True, "has_residual": True},
        {"is_gated": True, "has_residual": True},
    ]
    sizes = [(1, 1, 1), (3, 33, 257), (17, 8, 400), (64, 70, 64), (16, 9, 1000), (70, 5, 33)]
    dtypes = (torch.float32, torch.bfloat16)
    return [
        Case(*size, dtype, **kinds[(i + j) % len(kinds)])
        for i, size in enumerate(sizes)
        for dtype in dtypes
        for j in (0, 2, 3)
    ]


def layer(num_rows: int, dtype: torch.dtype = torch.bfloat16) -> list[Case]:
    """The four products of a layer of Qwen2.5-1.5B."""
    hidden, inter, qkv = 1536, 8960, (12 + 2 * 2) * 128
    return [
        Case(num_rows, qkv, hidden, dtype, has_norm=True),
        Case(num_rows, hidden, hidden, dtype, has_residual=True),
        Case(num_rows, inter, hidden, dtype, has_norm=True, is_gated=True),
        Case(num_rows, hidden, inter, dtype, has_residual=True),
    ]


def full() -> list[Case]:
    """A 1.5B model's layers at decode."""
    return [case for num_rows in (1, 16, 64) for case in layer(num_rows)]
