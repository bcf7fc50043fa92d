"""Inputs for rope_store_kv's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ttc_kernels import kv_cache


@dataclass(frozen=True)
class Case:
    num_rows: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    block_size: int = 16
    max_position: int = 1024
    has_bias: bool = False

    @property
    def width(self) -> int:
        """Elements in a row of qkv."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def flops(self) -> int:
        return 3 * self.num_rows * (self.num_heads + self.num_kv_heads) * self.head_dim

    @property
    def num_bytes(self) -> int:
        """Queries both ways, keys and values read and written, a row of the tables."""
        elements = 2 * self.num_rows * self.width
        bias = self.width * self.dtype.itemsize if self.has_bias else 0
        return elements * self.dtype.itemsize + 4 * self.num_rows * self.head_dim + bias

    def inputs(self, seed: int = 0) -> dict:
        """Arguments of rope_store_kv; every fifth row stores nothing."""
        generator = torch.Generator().manual_seed(seed)
        num_blocks = self.num_rows // self.block_size + 2
        k, v = kv_cache.allocate(1, num_blocks, self.num_kv_heads, self.block_size, self.head_dim, self.dtype)
        slots = torch.randperm(num_blocks * self.block_size, generator=generator)[: self.num_rows].int()
        slots[4::5] = -1
        frequencies = 10000.0 ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.arange(self.max_position)[:, None] * frequencies
        return {
            "qkv": torch.randn(self.num_rows, self.width, generator=generator).to(self.dtype),
            "cos": angles.cos(),
            "sin": angles.sin(),
            "positions": torch.randint(self.max_position, (self.num_rows,), generator=generator).int(),
            "slots": slots,
            "k_cache": k[0],
            "v_cache": v[0],
            "bias": torch.randn(self.width, generator=generator).to(self.dtype) if self.has_bias else None,
        }


def tiny() -> list[Case]:
    sizes = [(1, 1, 1, 2), (7, 6, 2, 16), (5, 3, 1, 24), (9, 4, 4, 80), (33, 4, 2, 64), (3, 2, 1, 256)]
    cases = [Case(*size, dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]
    return [*cases, *(replace(case, has_bias=True) for case in cases[2:])]


def full() -> list[Case]:
    """The home model's decode, and a 1.5B model's decode and prefill, which has a bias."""
    sizes = [(256, 6, 2, 16), (1024, 6, 2, 16), (64, 12, 2, 128), (2048, 12, 2, 128)]
    return [Case(*size, dtype, has_bias=size[-1] == 128) for size in sizes for dtype in (torch.float32, torch.bfloat16)]
