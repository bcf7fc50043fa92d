"""The KV pool of one model: the tree of its blocks, and the tensors with the blocks' keys and values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.counts import check_count, shown
from engine.errors import UserError
from engine.model import CPU, ModelConfig, Placement, read_config, weight_bytes
from ttc_kernels import _native, kv_cache

DEFAULT_KV_BYTES = 1 << 30  # on a CPU
GPU_SHARE = 0.85  # of the free memory beside the weights; the rest is for activations and captured graphs
BLOCK_SIZE = 16  # tokens
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
MAX_BLOCKS = (1 << 31) // BLOCK_SIZE - 1024  # slots are int32


@dataclass
class KVPool:
    """`k` and `v` are (layers, blocks, KV heads, block size, head dim)."""

    tree: _native.KVTree
    k: torch.Tensor
    v: torch.Tensor
    bytes_per_block: int

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        num_blocks: int | None = None,
        placement: Placement = CPU,
    ) -> KVPool:
        """A pool of `num_blocks` blocks; by default as many as fit 1 GiB on a CPU, GPU_SHARE of a GPU's free memory.

        All ranks have as many; `config` is that of this rank's part.
        """
        per_block, device = bytes_per_block(config, dtype), placement.device
        if num_blocks is None and device.type == "cuda":
            num_blocks = placement.ranks.least(blocks_within(torch.cuda.mem_get_info(device)[0], [config], dtype))
        if num_blocks is None:
            num_blocks = max(64, default_bytes(memory_bytes(torch.device(device))) // per_block)
        num_blocks = check_count("num_blocks", num_blocks)
        num_all = num_blocks + config.num_scratch_blocks  # the tree gives out the first ones
        sizes = (config.num_layers, num_all, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        needed, had = num_all * per_block, memory_bytes(device)
        need = f"num_blocks {shown(num_blocks)} needs {_mib(needed)} of memory, {per_block:,} bytes a block"
        if needed > had:
            raise UserError(f"{need}; there are {_mib(had)}")
        check_count("num_blocks", num_blocks, 1, MAX_BLOCKS)
        try:
            k, v = kv_cache.allocate(*sizes, dtype, device)
        except (OSError, MemoryError, RuntimeError) as error:  # mmap's and torch's ways to say that there is none
            raise UserError(f"{need}; of {_mib(had)} it cannot be had: {error}") from None
        return cls(_native.KVTree(num_blocks, BLOCK_SIZE), k, v, per_block)


def default_bytes(num_bytes: int) -> int:
    """The pool's size on a CPU with so much memory: in a small container weights and all else have to fit too."""
    return min(DEFAULT_KV_BYTES, num_bytes // 4)


def memory_bytes(device: torch.device) -> int:
    """What a GPU has free, or what the machine has, less where a control group limits this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_MEMORY_LIMIT.read_text()))
    except (OSError, ValueError):  # another system, or "max"
        return machine


def _mib(num_bytes: int) -> str:
    return f"{shown(num_bytes >> 20)} MiB"


def bytes_per_block(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one block's keys and values in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize * BLOCK_SIZE


def shared_blocks(folders: Mapping[Path, str | None], dtype: torch.dtype, placement: Placement) -> int:
    """KV blocks for each of the models that are to be loaded onto a GPU, of several ranks the part of each.

    `folders` maps each model's folder to its architecture; None reads it from config.json. Raises UserError if nothing
    is left beside the weights.
    """
    ranks, whole = placement.ranks, [read_config(folder, architecture) for folder, architecture in folders.items()]
    weights = sum(weight_bytes(folder, dtype) for folder in folders) // ranks.size
    if ranks.size > 1:  # the embedding is not split
        weights += sum(config.vocab_size * config.hidden_size for config in whole) * dtype.itemsize
    configs = [ranks.part(config, f"{folder}: ") for folder, config in zip(folders, whole, strict=True)]
    return ranks.least(blocks_within(torch.cuda.mem_get_info(placement.device)[0] - weights, configs, dtype))


def blocks_within(num_bytes: int, configs: Sequence[ModelConfig], dtype: torch.dtype) -> int:
    """How many blocks each model gets in GPU_SHARE of the memory: all get as many, because they hold the same branches.

    Raises UserError if that is less than one.
    """
    per_block = sum(bytes_per_block(config, dtype) for config in configs)
    num_blocks = int(GPU_SHARE * num_bytes) // per_block
    if num_blocks < 1:
        raise UserError(
            f"the models leave {num_bytes / 2**20:,.0f} MiB of the GPU's memory for KV blocks, of which one for each "
            f"model takes {per_block / 2**20:,.1f} MiB"
        )
    return min(num_blocks, MAX_BLOCKS)
