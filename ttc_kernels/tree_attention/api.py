"""tree_attention: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels import _native
from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.tree_attention import cuda, reference
from ttc_kernels.tree_attention.prefill import split_of

choose = chooser("tree_attention")


def tree_attention(
    q: torch.Tensor,  # (rows, num_heads, head_dim); rows and heads may be strided (a slice of the fused QKV output)
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim): one layer of `kv_cache.allocate`
    v_cache: torch.Tensor,  # the same
    plan,  # KVTree.plan(...), whose rows are q's, or any object with its `items` and `blocks`
    scale: float,
    out: torch.Tensor | None = None,  # (rows, num_heads, head_dim), contiguous; written and returned
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> torch.Tensor:
    """Softmax attention of every query row over its path in the KV tree.

    q and the caches are all float32 or all bfloat16, on a GPU also float16 (summed in float32); head_dim is even and at
    most 256. "cuda" and "triton" also take a `work.AttentionWork` as the plan. In the native kernel the bits of a row
    depend on its own query and path alone, not on the batch or the threads; on a GPU also on how many rows share its
    nodes.

    `impl` is "auto" (see choice.py; on a GPU long runs of one branch's rows go through flash-attn or SDPA, see
    prefill.py), "native" (CPU), "triton" (any strides of the caches), "cuda" (float16 and bfloat16, head_dim 64 and
    128) or "reference" (any dtype and strides); `isa` picks the native build ("portable", "avx2", "avx512"). Raises
    ValueError for anything else, and for a plan that points outside q or the cache.
    """
    _check_shapes(q, k_cache, v_cache)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    else:
        check_tensor("tree_attention", "out", out, q.shape, q.dtype, q.device)
    if impl == "auto" and (split := split_of(plan, q, k_cache)) is not None:
        if split.rest is not None:
            tree_attention(q, k_cache, v_cache, split.rest, scale, out, isa=isa)
        for run in split.runs:
            run.attend(q, k_cache, v_cache, scale, out)
        return out
    impl = choose(impl, q)
    if impl == "reference":
        return reference.tree_attention(q, k_cache, v_cache, plan, scale, out)
    if impl == "triton":
        _check_for_triton(q, k_cache)
        return load_triton("tree_attention", q).tree_attention(q, k_cache, v_cache, plan, scale, out)
    if impl == "cuda":
        return cuda.tree_attention(q, k_cache, v_cache, plan, scale, out)
    _check_for_native(q, k_cache, v_cache, out)
    _native.tree_attention(q, k_cache, v_cache, plan, scale, out, isa)
    return out


def _check_shapes(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    shape, k_shape, dtype = q.shape, k_cache.shape, q.dtype
    if len(shape) != 3 or len(k_shape) != 4 or v_cache.shape != k_shape or shape[2] != k_shape[3]:
        raise ValueError(
            "tree_attention: q must be (rows, num_heads, head_dim) and k_cache, v_cache (num_blocks, "
            f"num_kv_heads, block_size, head_dim), got {tuple(shape)}, {tuple(k_shape)}, "
            f"{tuple(v_cache.shape)}"
        )
    if shape[1] % k_shape[1]:
        raise ValueError(f"tree_attention: num_heads {shape[1]} must be a multiple of num_kv_heads {k_shape[1]}")
    if k_cache.dtype is not dtype or v_cache.dtype is not dtype:
        raise ValueError(
            f"tree_attention: q, k_cache, v_cache must share a dtype, got {dtype}, {k_cache.dtype}, {v_cache.dtype}"
        )


def _check_for_native(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, out: torch.Tensor) -> None:
    head_dim = q.shape[2]
    if (
        not (q.dtype is torch.bfloat16 or q.dtype is torch.float32)
        or not (q.is_cpu and k_cache.is_cpu and v_cache.is_cpu and out.is_cpu)
        or head_dim > 256
        or head_dim % 2
        or k_cache.shape[2] % 16
        or q.stride(2) != 1
        or k_cache.stride(2) != 1
        or v_cache.stride(3) != 1
    ):
        raise ValueError(
            "tree_attention: the native kernel takes float32 or bfloat16 on a CPU, an even head_dim up to "
            "256, block_size a multiple of 16, adjacent elements in q and v_cache, adjacent keys in k_cache, "
            f"got q {describe(q)}, k_cache {describe(k_cache)}, v_cache {describe(v_cache)}"
        )


def _check_for_triton(q: torch.Tensor, k_cache: torch.Tensor) -> None:
    if (
        q.dtype not in DTYPES["triton"]
        or q.shape[2] > 256
        or q.shape[2] % 2
        or k_cache.shape[2] % 16
        or q.stride(2) != 1
    ):
        raise ValueError(
            "tree_attention: the Triton kernel takes float32, bfloat16 or float16, an even head_dim up to 256, "
            f"block_size a multiple of 16 and adjacent elements in q, got q {describe(q)}, k_cache "
            f"{describe(k_cache)}"
        )
