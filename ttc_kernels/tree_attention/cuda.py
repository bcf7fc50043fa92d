"""tree_attention on an NVIDIA GPU, in CUDA.

The CUDA kernel takes float16 and bfloat16, head sizes 64 and 128, blocks of a power of two, and keys and values
with adjacent head_dim: what `kv_cache.allocate` gives on a GPU (on a CPU its keys are transposed in a block).
"""

from __future__ import annotations

import torch

from ttc_kernels.cuda import Library, describe, library
from ttc_kernels.tree_attention.work import work_of

HEAD_DIMS = (64, 128)


def tree_attention(
    q: torch.Tensor,  # (rows, num_heads, head_dim)
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    v_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    plan,
    scale: float,
    out: torch.Tensor | None = None,  # (rows, num_heads, head_dim)
    *,
    lib: Library | None = None,
) -> torch.Tensor:
    """`reference.tree_attention` in two launches.

    `plan` may be an AttentionWork, which holds one already; else its list is made at the first call and uploaded once
    for as long as the plan lives. Raises ValueError for what the kernel does not have, RuntimeError where a launch
    fails.
    """
    lib = lib or library()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    device = lib.check_device("tree_attention", q=q, k_cache=k_cache, v_cache=v_cache, out=out)
    _check(q, k_cache, v_cache, out)
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    work = work_of(plan, q, k_cache)
    lib.call(
        "tree_attention",
        device,
        f"q {describe(q)}, k_cache {describe(k_cache)}",
        q.data_ptr(),
        *q.stride()[:2],
        k_cache.data_ptr(),
        *k_cache.stride()[:3],
        v_cache.data_ptr(),
        *v_cache.stride()[:3],
        out.data_ptr(),
        work.partial.data_ptr(),
        work.partial_lse.data_ptr(),
        work.ints.data_ptr(),
        num_rows,
        num_heads,
        num_kv_heads,
        head_dim,
        block_size.bit_length() - 1,
        q.dtype is torch.bfloat16,
        scale,
    )
    return out


def _check(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, out: torch.Tensor) -> None:
    is_laid_out = (
        q.ndim == 3
        and k_cache.ndim == 4
        and v_cache.shape == k_cache.shape
        and k_cache.shape[3] == q.shape[2]
        and q.shape[2] in HEAD_DIMS
        and q.shape[1] % k_cache.shape[1] == 0
        and k_cache.shape[2].bit_count() == 1
        and q.dtype in (torch.float16, torch.bfloat16)
        and k_cache.dtype is v_cache.dtype is out.dtype is q.dtype
        and out.shape == q.shape
        and out.is_contiguous()
    )
    # Keys and values are copied 16 bytes at a time, queries read 4.
    if not is_laid_out or not (_is_aligned(q, 4) and _is_aligned(k_cache, 16) and _is_aligned(v_cache, 16)):
        raise ValueError(
            "tree_attention: the CUDA kernel takes float16 or bfloat16, head_dim 64 or 128, block_size a power of "
            "two, adjacent head_dim, rows of keys and values aligned to 16 bytes and of queries to 4, out "
            f"contiguous, got q {describe(q)}, k_cache {describe(k_cache)}, v_cache {describe(v_cache)}, out "
            f"{describe(out)}"
        )


def _is_aligned(x: torch.Tensor, num_bytes: int) -> bool:
    """Whether every row of the last dimension is dense and starts at a multiple of num_bytes."""
    per = num_bytes // x.element_size()
    return x.stride(-1) == 1 and x.data_ptr() % num_bytes == 0 and all(s % per == 0 for s in x.stride()[:-1])
