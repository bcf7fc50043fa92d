"""Inputs for tree_attention's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ttc_kernels import _native, kv_cache
from ttc_kernels.testing import poisoned
from ttc_kernels.tree_attention.reference import visible_slots


@dataclass(frozen=True)
class Case:
    """A tree: level i forks every branch into levels[i][0], each fed levels[i][1] tokens or more."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    levels: tuple[tuple[int, int], ...]
    num_queries: int = 1  # query rows per leaf, its last tokens
    block_size: int = 16
    spread: int = 0  # lengths vary by up to this many tokens

    def grow(self, seed: int = 0):
        """(tree, its leaves, number of blocks in the pool)."""
        rng = np.random.default_rng(seed)
        leaves = math.prod(fanout for fanout, _ in self.levels)
        per_path = sum(-(-(tokens + self.spread) // self.block_size) for _, tokens in self.levels)
        num_blocks = leaves * per_path + 3
        tree = _native.KVTree(num_blocks, self.block_size)
        handles = np.array([tree.open(np.zeros(0, np.int32))[0]], np.int32)
        for fanout, tokens in self.levels:
            if fanout > 1:
                handles = np.concatenate([tree.fork(handle, fanout) for handle in handles])
            counts = tokens + rng.integers(0, self.spread + 1, len(handles))
            tree.extend(handles, counts.astype(np.int32), rng.integers(0, 1000, counts.sum()).astype(np.int32))
        return tree, handles, num_blocks

    def plan(self, seed: int = 0):
        """(plan, number of blocks in the pool)."""
        tree, handles, num_blocks = self.grow(seed)
        return tree.plan(handles, np.full(len(handles), self.num_queries, np.int32)), num_blocks

    def inputs(self, seed: int = 0) -> dict:
        """Arguments of tree_attention; q is a slice of a fused QKV tensor, slots without a token hold NaN."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        plan, num_blocks = self.plan(seed)
        num_rows = len(plan.positions)
        k, v = kv_cache.allocate(1, num_blocks, self.num_kv_heads, self.block_size, self.head_dim, self.dtype)
        k, v = k[0], v[0]
        k.copy_(poisoned(*k.shape, dtype=self.dtype))
        v.copy_(poisoned(*v.shape, dtype=self.dtype))
        slots = torch.cat(visible_slots(plan, self.block_size, num_rows)).unique()
        block, offset = slots // self.block_size, slots % self.block_size
        k[block, :, offset] = normal(len(slots), self.num_kv_heads, self.head_dim)
        v[block, :, offset] = normal(len(slots), self.num_kv_heads, self.head_dim)
        fused = normal(num_rows, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim)
        q = fused[:, : self.num_heads * self.head_dim].view(num_rows, self.num_heads, self.head_dim)
        return {"q": q, "k_cache": k, "v_cache": v, "plan": plan, "scale": self.head_dim**-0.5}

    def num_keys(self, seed: int = 0) -> tuple[int, int]:
        """(query row, key) pairs, and distinct keys."""
        plan, _ = self.plan(seed)
        slots = visible_slots(plan, self.block_size, len(plan.positions))
        return sum(map(len, slots)), len(torch.cat(slots).unique())

    def flops(self, seed: int = 0) -> int:
        """Two for each multiply-add of scores and of values."""
        return 4 * self.num_keys(seed)[0] * self.num_heads * self.head_dim

    def num_bytes(self, seed: int = 0) -> int:
        """Every distinct key and value once, q and the result once."""
        plan, _ = self.plan(seed)
        kv = 2 * self.num_keys(seed)[1] * self.num_kv_heads
        return (kv + 2 * len(plan.positions) * self.num_heads) * self.head_dim * self.dtype.itemsize


def tiny() -> list[Case]:
    """Odd head sizes, groups and blocks; lone tokens, partial tiles and queries over several nodes."""
    shapes = [
        (1, 1, 16),
        (6, 2, 16),
        (3, 1, 24),
        (4, 4, 32),
        (4, 2, 64),
        (2, 1, 80),
        (12, 2, 128),
        (16, 1, 256),
    ]
    shapes += [(2, 1, 2), (5, 1, 18), (2, 2, 96), (7, 1, 40)]
    trees = [
        ((1, 1),),
        ((1, 16), (2, 1)),
        ((1, 37), (3, 5), (2, 9)),
        ((1, 70), (5, 33)),
    ]
    cases = []
    for i, shape in enumerate(shapes):
        for dtype in (torch.float32, torch.bfloat16):
            for j, levels in enumerate(trees):
                num_queries = (1, 2, 11, 20)[j] if (i + j) % 2 and j else 1
                block_size, spread = (16, 32, 64)[(i + j) % 3], (0, 0, 4, 9)[j]
                cases.append(Case(*shape, dtype, levels, num_queries, block_size, spread))
    return cases


def full() -> list[Case]:
    """The home model's decode in beams and in 256 samples of one prompt; 1K tokens shared by 64 branches."""
    home = (((1, 60), (16, 15), (4, 20), (1, 20), (4, 15)), ((1, 60), (64, 15), (4, 20), (4, 20)))
    cases = [Case(6, 2, 16, torch.float32, levels, spread=6) for levels in home]
    cases += [Case(6, 2, 16, dtype, ((1, 40), (256, 20)), spread=80) for dtype in (torch.float32, torch.bfloat16)]
    layouts = [(32, 32), (32, 8), (12, 2), (16, 1)]
    shared = ((1, 1024), (64, 16))
    cases += [Case(*layout, 128, dtype, shared) for layout in layouts for dtype in (torch.float32, torch.bfloat16)]
    cases += [Case(12, 2, 128, dtype, ((1, 512),), 256) for dtype in (torch.float32, torch.bfloat16)]
    return cases
