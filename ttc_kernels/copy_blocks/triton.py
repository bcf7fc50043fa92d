"""copy_blocks on a GPU: one launch a cache, for all of its layers. Bits are moved, so every type passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


@triton.jit
def _copy_blocks(cache_ptr, pairs_ptr, layer_stride, block_stride, block_size, BLOCK: tl.constexpr):
    pair = tl.program_id(0)
    source = tl.load(pairs_ptr + 2 * pair).to(tl.int64)
    destination = tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64)
    layer_ptr = cache_ptr + tl.program_id(1).to(tl.int64) * layer_stride
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < block_size
    words = tl.load(layer_ptr + source * block_stride + at, mask=is_inside)
    tl.store(layer_ptr + destination * block_stride + at, words, mask=is_inside)


def copy_blocks(caches: Sequence[torch.Tensor], pairs: torch.Tensor) -> None:
    """The blocks of `caches`, (num_layers, num_blocks, ...), lie without gaps; pairs (n, 2) is contiguous."""
    for cache in caches:
        if cache.numel() == 0 or len(pairs) == 0:
            continue
        size = cache[0, 0].numel()
        block = min(1024, triton.next_power_of_2(size))
        words = triton.reinterpret(cache, WORDS[cache.element_size()])
        grid = (len(pairs), len(cache), triton.cdiv(size, block))
        _copy_blocks[grid](words, pairs.to(cache.device), cache.stride(0), cache.stride(1), size, BLOCK=block)
