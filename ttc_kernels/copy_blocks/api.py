"""copy_blocks: what may be passed, and who computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttc_kernels import _native
from ttc_kernels.checks import describe
from ttc_kernels.choice import chooser, load_triton
from ttc_kernels.copy_blocks import cuda, reference

choose = chooser("copy_blocks")


def copy_blocks(caches: Sequence[torch.Tensor], pairs: torch.Tensor, *, impl: str = "auto") -> None:
    """Copies block pairs[i][0] over block pairs[i][1], in every layer of every cache.

    Each cache is (num_layers, num_blocks, ...), of any dtype; the elements of a block may be in any order (as k_cache's
    on a CPU are), but without gaps. pairs is int32 (n, 2); no block may be written twice, or both read and written.
    With caches on a GPU pairs may be on the CPU, which saves a wait. `impl` is "auto" (see choice.py), "native" (CPU),
    "triton", "cuda" or "reference". Raises ValueError for anything else.
    """
    impl = choose(impl, caches[0] if len(caches) else pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype is not torch.int32:
        raise ValueError(f"copy_blocks: pairs must be int32 (n, 2), got {tuple(pairs.shape)} {pairs.dtype}")
    if not (pairs.is_cpu or (caches and pairs.device == caches[0].device)):
        raise ValueError(f"copy_blocks: pairs must be on a CPU or beside the caches, got {describe(pairs)}")
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
    if impl == "cuda":
        cuda.copy_blocks(caches, pairs)
        return
    layouts = [_block_layout(cache, impl) for cache in caches]
    if impl == "triton":
        if caches:
            load_triton("copy_blocks", caches[0]).copy_blocks(caches, pairs)
        return
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


def _block_layout(cache: torch.Tensor, impl: str) -> tuple[int, int]:
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
    is_here = cache.is_cpu or impl == "triton"
    if cache.numel() and not (is_here and is_dense and cache.stride(1) == block_elements):
        raise ValueError(
            "copy_blocks: the kernels take caches (the native one on a CPU) whose blocks lie without gaps, got "
            f"{describe(cache)} for impl {impl!r}"
        )
    return cache.stride(0) * cache.element_size(), block_elements * cache.element_size()
