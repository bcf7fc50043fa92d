"""The memory that holds keys and values: blocks of slots, one rule for every op and device."""

from __future__ import annotations

import math
import mmap

import torch


def allocate(
    num_layers: int,
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero-filled (k_cache, v_cache), both (num_layers, num_blocks, num_kv_heads, block_size, head_dim).

    On a CPU the memory of k_cache is ordered (..., head_dim, block_size), so that one vector register spans
    keys; v_cache is contiguous. Slot s is block s // block_size, offset s % block_size. Raises ValueError
    unless all sizes are positive, block_size is a multiple of 16 and head_dim is even.
    """
    shape = (num_layers, num_blocks, num_kv_heads, block_size, head_dim)
    if min(shape) < 1 or block_size % 16 or head_dim % 2:
        raise ValueError(
            "kv_cache: sizes must be positive, block_size a multiple of 16 and head_dim even, got "
            f"(num_layers, num_blocks, num_kv_heads, block_size, head_dim) = {shape}"
        )
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
    k_cache = _untouched_zeros((*shape[:3], head_dim, block_size), dtype).transpose(-1, -2)
    return k_cache, _untouched_zeros(shape, dtype)


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros of which no page is in memory before it is used; torch.zeros writes them all."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
