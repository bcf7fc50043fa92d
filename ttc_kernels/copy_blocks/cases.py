"""Inputs for copy_blocks's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttc_kernels import kv_cache


@dataclass(frozen=True)
class Case:
    num_pairs: int
    num_layers: int
    num_blocks: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    block_size: int = 16

    @property
    def flops(self) -> int:
        return 0

    @property
    def num_bytes(self) -> int:
        """Keys and values, read and written."""
        per_block = self.num_kv_heads * self.block_size * self.head_dim * self.dtype.itemsize
        return 4 * self.num_pairs * self.num_layers * per_block

    def inputs(self, seed: int = 0) -> dict:
        """Arguments of copy_blocks: k_cache and v_cache of all layers, and pairs of distinct blocks."""
        generator = torch.Generator().manual_seed(seed)
        caches = kv_cache.allocate(
            self.num_layers, self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim, self.dtype
        )
        for cache in caches:
            cache.copy_(torch.randn(cache.shape, generator=generator))
        blocks = torch.randperm(self.num_blocks, generator=generator)[: 2 * self.num_pairs].int()
        return {"caches": caches, "pairs": blocks.view(self.num_pairs, 2)}


def tiny() -> list[Case]:
    sizes = [(0, 1, 2, 1, 16), (1, 1, 2, 1, 2), (3, 2, 9, 2, 24), (8, 4, 16, 1, 64)]
    return [Case(*size, dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]


def full() -> list[Case]:
    """64 forks: the home model, and a 1.5B one."""
    return [Case(64, 6, 512, 2, 16, torch.float32), Case(64, 28, 256, 2, 128, torch.bfloat16)]
