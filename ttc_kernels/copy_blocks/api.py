"""copy_blocks: what may be passed, and who computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttc_kernels import _native
from ttc_kernels.copy_blocks import reference


def copy_blocks(caches: Sequence[torch.Tensor], pairs: torch.Tensor, *, impl: str = "auto") -> None:
    """Copies block pairs[i][0] over block pairs[i][1], in every layer of every cache.

    Each cache is (num_layers, num_blocks, ...), of any dtype; a block's own elements may be ordered as they
    like (as k_cache's on a CPU), but must lie together. pairs is int32 (n, 2); no block is written twice, and
    none that is written is read. `impl` is "auto", "native" (CPU) or "reference". Raises ValueError for
    anything else.
    """
    if impl not in ("auto", "native", "reference"):
        raise ValueError(f"copy_blocks: impl must be 'auto', 'native' or 'reference', got {impl!r}")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype is not torch.int32:
        raise ValueError(f"copy_blocks: pairs must be int32 (n, 2), got {tuple(pairs.shape)} {pairs.dtype}")
    written = pairs[:, 1].tolist()
    if len(set(written)) != len(written) or not set(written).isdisjoint(pairs[:, 0].tolist()):
        raise ValueError(f"copy_blocks: a block is written twice, or written and read, in pairs {pairs.tolist()}")
    for cache in caches:
        if cache.ndim < 2:
            raise ValueError(f"copy_blocks: a cache must be (num_layers, num_blocks, ...), got {tuple(cache.shape)}")
        if pairs.numel() and not _are_within(pairs, cache.shape[1]):
            raise ValueError(f"copy_blocks: a pair in {pairs.tolist()} is outside the cache of {cache.shape[1]} blocks")
    if impl == "reference":
        reference.copy_blocks(caches, pairs)
        return
    pairs = pairs.contiguous()
    layouts = [_block_layout(cache) for cache in caches]
    for cache, (layer_bytes, block_bytes) in zip(caches, layouts, strict=True):
        if cache.numel():
            _native.copy_blocks(
                cache.data_ptr(),
                layer_bytes,
                block_bytes,
                cache.shape[0],
                cache.shape[1],
                pairs.data_ptr(),
                len(pairs),
            )


def _are_within(pairs: torch.Tensor, num_blocks: int) -> bool:
    return int(pairs.min()) >= 0 and int(pairs.max()) < num_blocks


def _block_layout(cache: torch.Tensor) -> tuple[int, int]:
    """(bytes from layer to layer, bytes of a block); ValueError unless blocks lie without gaps."""
    block_elements = cache[0, 0].numel() if cache.numel() else 0
    expected = 1
    strides = sorted(
        (stride, size) for stride, size in zip(cache.stride()[2:], cache.shape[2:], strict=True) if size > 1
    )
    is_dense = True
    for stride, size in strides:
        is_dense = is_dense and stride == expected
        expected *= size
    if cache.numel() and not (cache.is_cpu and is_dense and cache.stride(1) == block_elements):
        raise ValueError(
            "copy_blocks: the native kernel takes caches on a CPU whose blocks lie without gaps, got "
            f"{tuple(cache.shape)} with strides {cache.stride()} on {cache.device}"
        )
    return cache.stride(0) * cache.element_size(), block_elements * cache.element_size()
