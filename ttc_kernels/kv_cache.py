"""The memory that holds keys and values, in blocks of slots, laid out the same way for every op."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch

_HUGE_PAGE = 2 << 20  # bytes


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
    if torch.device(device).type == "cpu":
        k_cache = _zeros((*shape[:3], head_dim, block_size), dtype).transpose(-1, -2)
        return k_cache, _zeros(shape, dtype)
    v_cache = torch.zeros(shape, dtype=dtype, device=device)
    return torch.zeros_like(v_cache), v_cache


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on a CPU; large ones in huge pages where the system gives them.

    Attention reads blocks that lie anywhere in the pool: with pages of 4 KiB each of them costs a page walk.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
