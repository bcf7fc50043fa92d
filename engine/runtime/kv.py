"""The KV pool of one model: the tree that says where tokens live, and the tensors they live in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.model import ModelConfig
from ttc_kernels import _native, kv_cache

DEFAULT_KV_BYTES = 1 << 30
BLOCK_SIZE = 16  # tokens


@dataclass
class KVPool:
    """`k` and `v` are (layers, blocks, KV heads, block size, head dim)."""

    tree: _native.KVTree
    k: torch.Tensor
    v: torch.Tensor
    bytes_per_block: int

    @classmethod
    def allocate(cls, config: ModelConfig, dtype: torch.dtype, num_blocks: int | None = None) -> KVPool:
        """A pool of `num_blocks` blocks; by default as many as fit 1 GiB."""
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
        per_block = per_token * BLOCK_SIZE
        if num_blocks is None:
            num_blocks = max(64, DEFAULT_KV_BYTES // per_block)
        if num_blocks < 1:
            raise ValueError(f"a KV pool needs at least one block, got {num_blocks}")
        num_all = num_blocks + config.num_scratch_blocks  # the tree gives out the first ones
        k, v = kv_cache.allocate(
            config.num_layers, num_all, config.num_kv_heads, BLOCK_SIZE, config.head_dim, dtype, "cpu"
        )
        return cls(_native.KVTree(num_blocks, BLOCK_SIZE), k, v, per_block)
