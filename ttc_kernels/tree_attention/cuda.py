"""tree_attention on an NVIDIA GPU, in CUDA.

The CUDA kernel takes float16 and bfloat16, head sizes 64 and 128, blocks of a power of two, and keys and values
with adjacent head_dim: what `kv_cache.allocate` gives on a GPU (on a CPU its keys are transposed in a block).
"""

from __future__ import annotations

import ctypes

import torch

from ttc_kernels.checks import describe
from ttc_kernels.cuda import Library, library
from ttc_kernels.tree_attention.work import AttentionWork, work_of

HEAD_DIMS = (64, 128)
MIN_BLOCK_SIZE = 16


class AttentionArgs(ctypes.Structure):
    """AttentionArgs of csrc/tree_attention/tree_attention_gpu.h: addresses, and strides in elements."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
        ("partial_lse", ctypes.c_void_p),
        ("work", ctypes.c_void_p),
        ("q_row", ctypes.c_int32),
        ("q_head", ctypes.c_int32),
        ("k_block", ctypes.c_int32),
        ("k_head", ctypes.c_int32),
        ("v_block", ctypes.c_int32),
        ("v_head", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("block_shift", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("head_dim", ctypes.c_int32),
        ("is_bf16", ctypes.c_int32),
    )


def tree_attention(
    q: torch.Tensor,  # (rows, num_heads, head_dim)
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    v_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    plan,  # KVTree.plan(...), or any object with its `items` and `blocks`
    scale: float,
    out: torch.Tensor | None = None,  # (rows, num_heads, head_dim)
    *,
    lib: Library | None = None,
) -> torch.Tensor:
    """`reference.tree_attention` in one launch.

    `plan` may be an AttentionWork, which holds a plan's work list already; otherwise the list is made and uploaded at
    the first call with the plan, and kept as long as the plan lives. Raises ValueError for arguments that the kernel
    does not support, RuntimeError where a launch fails.
    """
    lib = lib or library()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    device = lib.check_device("tree_attention", q=q, k_cache=k_cache, v_cache=v_cache, out=out)
    _check(q, k_cache, v_cache, out)
    args = _args(q, k_cache, v_cache, work_of(plan, q, k_cache), scale, out)
    lib.call("tree_attention", device, lambda: f"q {describe(q)}, k_cache {describe(k_cache)}", args)
    return out


def _args(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    work: AttentionWork,
    scale: float,
    out: torch.Tensor,
) -> AttentionArgs:
    q_row, q_head, _ = q.stride()
    k_block, k_head, _, _ = k_cache.stride()
    v_block, v_head, _, _ = v_cache.stride()
    _, num_heads, head_dim = q.shape
    return AttentionArgs(
        q=q.data_ptr(),
        k=k_cache.data_ptr(),
        v=v_cache.data_ptr(),
        out=out.data_ptr(),
        partial=work.partial.data_ptr(),
        partial_lse=work.partial_lse.data_ptr(),
        work=work.ints.data_ptr(),
        q_row=q_row,
        q_head=q_head,
        k_block=k_block,
        k_head=k_head,
        v_block=v_block,
        v_head=v_head,
        num_heads=num_heads,
        num_kv_heads=k_cache.shape[1],
        block_shift=k_cache.shape[2].bit_length() - 1,
        scale=scale,
        head_dim=head_dim,
        is_bf16=q.dtype is torch.bfloat16,
    )


def _check(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, out: torch.Tensor) -> None:
    is_laid_out = (
        q.ndim == 3
        and k_cache.ndim == 4
        and v_cache.shape == k_cache.shape
        and k_cache.shape[3] == q.shape[2]
        and q.shape[2] in HEAD_DIMS
        and q.shape[1] % k_cache.shape[1] == 0
        and k_cache.shape[2].bit_count() == 1
        and k_cache.shape[2] >= MIN_BLOCK_SIZE
        and k_cache.stride(2) == v_cache.stride(2) == q.shape[2]
        and q.dtype in (torch.float16, torch.bfloat16)
        and k_cache.dtype is v_cache.dtype is out.dtype is q.dtype
        and out.shape == q.shape
        and out.is_contiguous()
    )
    if not is_laid_out or not all(map(_is_aligned, (q, k_cache, v_cache, out))):
        raise ValueError(
            "tree_attention: the CUDA kernel takes float16 or bfloat16, head_dim 64 or 128, block_size a power of "
            f"two from {MIN_BLOCK_SIZE} on, adjacent head_dim, a block's keys and values of a head one behind the "
            f"other, rows aligned to 16 bytes with strides below 2^31, out contiguous, got q {describe(q)}, k_cache "
            f"{describe(k_cache)}, v_cache {describe(v_cache)}, out {describe(out)}"
        )


def _is_aligned(x: torch.Tensor) -> bool:
    """Whether every row of the last dimension is dense and starts at a multiple of 16 bytes, no stride too long."""
    strides = x.stride()[:-1]
    return x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(s % 8 == 0 and s < 2**31 for s in strides)
