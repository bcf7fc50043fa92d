"""tree_attention: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels import _native
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.tree_attention import cuda, reference
from ttc_kernels.tree_attention.prefill import split_of

choose = chooser("tree_attention")


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan,
    scale: float,
    out: torch.Tensor | None = None,
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> torch.Tensor:
    """Softmax attention of every query row over its path in the KV tree.

    q is (rows, num_heads, head_dim), rows and heads may be strided (a slice of the fused QKV output); k_cache and
    v_cache are one layer of `kv_cache.allocate`, (num_blocks, num_kv_heads, block_size, head_dim); all float32 or all
    bfloat16, on a GPU also float16 (summed in float32). `plan` is `KVTree.plan(...)`; of it `items` and `blocks` are
    read, and its rows are q's; "cuda" and "triton" also take a `work.AttentionWork` that holds one. `out` is (rows,
    num_heads, head_dim), contiguous, written and returned. head_dim is even and at most 256. In the native kernel the
    bits of a row depend on its own query and path alone, not on the batch or the threads; on a GPU also on how many
    rows share its nodes.

    `impl` is "auto" (see choice.py; on a GPU long runs of one branch's rows go through flash-attn or SDPA, see
    prefill.py), "native" (CPU), "triton" (any strides of the caches), "cuda" (float16 and bfloat16, head_dim 64 and
    128) or "reference" (any dtype and strides); `isa` picks the native build ("portable", "avx2", "avx512"). Raises
    ValueError for anything else, and for a plan that points outside q or the cache.
    """
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
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=q.device)
    elif out.shape != shape or out.dtype is not dtype or not out.is_contiguous():
        raise ValueError(f"tree_attention: out must be {tuple(shape)} {dtype}, contiguous, got {_describe(out)}")
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
    q_stride, k_stride, v_stride = q.stride(), k_cache.stride(), v_cache.stride()
    is_bf16 = dtype is torch.bfloat16
    if (
        not (is_bf16 or dtype is torch.float32)
        or not (q.is_cpu and k_cache.is_cpu and v_cache.is_cpu and out.is_cpu)
        or shape[2] > 256
        or shape[2] % 2
        or k_shape[2] % 16
        or q_stride[2] != 1
        or k_stride[2] != 1
        or v_stride[3] != 1
    ):
        raise ValueError(
            "tree_attention: the native kernel takes float32 or bfloat16 on a CPU, an even head_dim up to "
            "256, block_size a multiple of 16, adjacent elements in q and v_cache, adjacent keys in k_cache, "
            f"got q {_describe(q)}, k_cache {_describe(k_cache)}, v_cache {_describe(v_cache)}"
        )
    _native.tree_attention(
        q.data_ptr(),
        q_stride[0],
        q_stride[1],
        k_cache.data_ptr(),
        k_stride[0],
        k_stride[1],
        k_stride[3],
        v_cache.data_ptr(),
        v_stride[0],
        v_stride[1],
        v_stride[2],
        out.data_ptr(),
        plan.items,
        plan.blocks,
        shape[0],
        shape[1],
        k_shape[1],
        shape[2],
        k_shape[2],
        k_shape[0],
        scale,
        is_bf16,
        isa,
    )
    return out


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
            f"block_size a multiple of 16 and adjacent elements in q, got q {_describe(q)}, k_cache "
            f"{_describe(k_cache)}"
        )


def _describe(x: torch.Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} with strides {x.stride()} on {x.device}"
