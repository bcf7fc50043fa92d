"""rope_store_kv: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels import _native
from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.rope_store_kv import reference

choose = chooser("rope_store_kv")


def rope_store_kv(
    qkv: torch.Tensor,  # (rows, (num_heads + 2 * num_kv_heads) * head_dim), queries first; rows may be strided
    cos: torch.Tensor,  # (max_position, head_dim / 2) float32
    sin: torch.Tensor,  # the same
    positions: torch.Tensor,  # (rows,) int32
    slots: torch.Tensor,  # (rows,) int32; -1 stores nothing, no other may occur twice
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim): one layer of `kv_cache.allocate`
    v_cache: torch.Tensor,  # the same
    bias: torch.Tensor | None = None,  # ((num_heads + 2 * num_kv_heads) * head_dim,): added to every row first
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> None:
    """Rotates the queries inside `qkv`, and stores its rotated keys and its values at `slots`.

    The KV heads are the caches', the other heads of a row are queries. qkv, the bias and the caches are float32 or
    bfloat16, in Triton also float16; only the queries of qkv change. `impl` is "auto" (see choice.py), "native" (CPU),
    "triton" or "reference"; `isa` picks the native build ("portable", "avx2", "avx512"). Raises ValueError for anything
    else, and for a position or slot outside its table; in Triton, where an error would wait for the device, such a
    position makes NaN and such a slot stores nothing.
    """
    _check_shapes(qkv, k_cache, v_cache)
    impl = choose(impl, qkv)
    if impl != "reference" and qkv.dtype not in DTYPES[impl]:
        raise ValueError(
            f"rope_store_kv: the kernels take float32 or bfloat16, in Triton also float16, got {qkv.dtype} for {impl!r}"
        )
    _check_layouts(qkv, cos, sin, positions, slots, k_cache, v_cache)
    if bias is not None:
        check_tensor("rope_store_kv", "bias", bias, qkv.shape[1:], qkv.dtype, qkv.device)
    if impl == "reference":
        reference.rope_store_kv(qkv, cos, sin, positions, slots, k_cache, v_cache, bias)
        return
    if impl == "triton":
        if qkv.stride(1) != 1:
            raise ValueError(f"rope_store_kv: qkv must have adjacent elements, got {describe(qkv)}")
        kernels = load_triton("rope_store_kv", qkv)
        kernels.rope_store_kv(qkv, cos, sin, positions, slots, k_cache, v_cache, bias)
        return
    if not (qkv.is_cpu and k_cache.is_cpu and v_cache.is_cpu) or qkv.stride(1) != 1 or v_cache.stride(3) != 1:
        raise ValueError(
            "rope_store_kv: the native kernel takes tensors on a CPU, with adjacent elements in qkv and "
            f"v_cache, got {describe(qkv)}, {describe(v_cache)}"
        )
    _native.rope_store_kv(qkv, cos, sin, positions, slots, k_cache, v_cache, bias, isa)


def _check_shapes(qkv: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    shape, k_shape = qkv.shape, k_cache.shape
    if (
        len(k_shape) != 4
        or v_cache.shape != k_shape
        or len(shape) != 2
        or shape[1] <= 2 * k_shape[1] * k_shape[3]
        or shape[1] % k_shape[3]
    ):
        raise ValueError(
            "rope_store_kv: qkv must be (rows, (num_heads + 2 * num_kv_heads) * head_dim), with a head of queries or "
            "more, and k_cache, v_cache (num_blocks, num_kv_heads, block_size, head_dim), got "
            f"{tuple(shape)}, {tuple(k_shape)}, {tuple(v_cache.shape)}"
        )


def _check_layouts(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> None:
    dtype, head_dim, rows = qkv.dtype, k_cache.shape[3], qkv.shape[0]
    if k_cache.dtype is not dtype or v_cache.dtype is not dtype or head_dim % 2 or head_dim > 256:
        raise ValueError(
            f"rope_store_kv: the caches must have qkv's dtype {dtype} and an even head_dim up to 256, "
            f"got {describe(k_cache)}, {describe(v_cache)}"
        )
    table = cos.shape[0], head_dim // 2
    check_tensor("rope_store_kv", "cos", cos, table, torch.float32, qkv.device)
    check_tensor("rope_store_kv", "sin", sin, table, torch.float32, qkv.device)
    check_tensor("rope_store_kv", "positions", positions, (rows,), torch.int32, qkv.device)
    check_tensor("rope_store_kv", "slots", slots, (rows,), torch.int32, qkv.device)
