"""copy_blocks on an NVIDIA GPU: all layers of all caches in one launch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from ttc_kernels.checks import describe
from ttc_kernels.cuda import Library, library

MAX_CACHES = 8  # in one launch


class CopyBlocksArgs(ctypes.Structure):
    """CopyBlocksArgs of csrc/copy_blocks/copy_blocks.cu."""

    _fields_ = (
        ("caches", ctypes.c_void_p),
        ("num_caches", ctypes.c_int64),
        ("num_layers", ctypes.c_int64),
        ("pairs", ctypes.c_void_p),
        ("num_pairs", ctypes.c_int64),
    )


def copy_blocks(caches: Sequence[torch.Tensor], pairs: torch.Tensor, *, lib: Library | None = None) -> None:
    """`reference.copy_blocks`; pairs on the CPU are sent to the GPU first.

    Pairs outside the caches are not refused, as checking pairs on the GPU would mean waiting for it. Raises ValueError
    for caches that the kernel cannot copy, RuntimeError where the launch fails.
    """
    lib = lib or library()
    if not len(caches) or not len(pairs):
        return
    device = lib.check_device("copy_blocks", **{f"caches[{i}]": cache for i, cache in enumerate(caches)})
    num_layers = caches[0].shape[0]
    for cache in caches:
        _check(cache, num_layers)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype is not torch.int32 or len(caches) > MAX_CACHES:
        raise ValueError(
            f"copy_blocks: pairs must be int32 (n, 2) and the CUDA kernel takes up to {MAX_CACHES} caches, got "
            f"{tuple(pairs.shape)} {pairs.dtype} and {len(caches)} caches"
        )
    pairs = pairs.to(device).contiguous()
    chunks = np.array([_chunks(cache) for cache in caches], np.int64)
    args = CopyBlocksArgs(
        caches=chunks.ctypes.data,
        num_caches=len(caches),
        num_layers=num_layers,
        pairs=pairs.data_ptr(),
        num_pairs=len(pairs),
    )
    lib.call("copy_blocks", device, lambda: f"{len(pairs)} pairs in caches {[tuple(x.shape) for x in caches]}", args)


def _chunks(cache: torch.Tensor) -> tuple[int, int, int]:
    """The fields of the C++ struct Cache: address, chunks of 16 bytes from layer to layer, chunks of a block."""
    size = cache.element_size()
    return cache.data_ptr(), cache.stride(0) * size // 16, cache.stride(1) * size // 16


def _check(cache: torch.Tensor, num_layers: int) -> None:
    """ValueError unless a layer's blocks have no gaps, in whatever order their elements are, and are whole chunks."""
    inner = sorted((stride, size) for stride, size in zip(cache.stride()[2:], cache.shape[2:], strict=True) if size > 1)
    expected = 1
    is_dense = cache.ndim >= 2 and cache.numel() > 0
    for stride, size in inner:
        is_dense = is_dense and stride == expected
        expected *= size
    num_bytes = [stride * cache.element_size() for stride in cache.stride()[:2]]
    is_whole = cache.data_ptr() % 16 == 0 and not any(n % 16 for n in num_bytes)
    if not is_dense or not is_whole or cache.stride(1) != expected or cache.shape[0] != num_layers:
        raise ValueError(
            "copy_blocks: the CUDA kernel takes caches of as many layers each, whose blocks lie without gaps and "
            f"in whole chunks of 16 bytes, got {describe(cache)} beside {num_layers} layers"
        )
