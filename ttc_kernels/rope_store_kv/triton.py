"""rope_store_kv on a GPU: a program for some heads of a row; rounds where reference.py does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ttc_kernels.overlap import await_earlier_kernels, overlap_options


@triton.jit
def _biased(x, bias_ptr, mask):
    return (x.to(tl.float32) + tl.load(bias_ptr, mask=mask, other=0.0).to(tl.float32)).to(x.dtype)


@triton.jit
def _rope_store_kv(
    qkv_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, k_ptr, v_ptr, bias_ptr, qkv_stride, max_position, num_slots,
    k_block_stride, k_head_stride, k_token_stride, k_dim_stride,
    v_block_stride, v_head_stride, v_token_stride, v_dim_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,  # of head_dim
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CAN_OVERLAP: tl.constexpr,
):  # fmt: skip
    await_earlier_kernels(CAN_OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    dim = tl.arange(0, BLOCK_HALF)[None, :]
    is_inside = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & (dim < HALF)
    position = tl.load(positions_ptr + row)
    # A position outside the tables shows as NaN: an exception would have to wait for the device.
    is_known = dim < tl.where((position >= 0) & (position < max_position), HALF, 0)
    place = position.to(tl.int64) * HALF + dim
    cos = tl.load(cos_ptr + place, mask=is_known, other=float("nan"))
    sin = tl.load(sin_ptr + place, mask=is_known, other=float("nan"))

    low_ptr = qkv_ptr + row * qkv_stride + head * (2 * HALF) + dim
    low = tl.load(low_ptr, mask=is_inside, other=0.0)
    high = tl.load(low_ptr + HALF, mask=is_inside, other=0.0)
    if HAS_BIAS:
        low = _biased(low, bias_ptr + head * (2 * HALF) + dim, is_inside)
        high = _biased(high, bias_ptr + head * (2 * HALF) + dim + HALF, is_inside)
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    rotated_low = (wide_low * cos - wide_high * sin).to(low.dtype)
    rotated_high = (wide_high * cos + wide_low * sin).to(low.dtype)
    is_query = is_inside & (head < NUM_HEADS)
    tl.store(low_ptr, rotated_low, mask=is_query)
    tl.store(low_ptr + HALF, rotated_high, mask=is_query)

    slot = tl.load(slots_ptr + row)
    is_stored = is_inside & (dim < tl.where((slot >= 0) & (slot < num_slots), HALF, 0))
    block, offset = (slot // BLOCK_SIZE).to(tl.int64), slot % BLOCK_SIZE
    k_head = head - NUM_HEADS
    is_key = is_stored & (k_head >= 0) & (k_head < NUM_KV_HEADS)
    k_place = k_ptr + block * k_block_stride + k_head * k_head_stride + offset * k_token_stride + dim * k_dim_stride
    tl.store(k_place, rotated_low, mask=is_key)
    tl.store(k_place + HALF * k_dim_stride, rotated_high, mask=is_key)
    v_head = k_head - NUM_KV_HEADS
    is_value = is_stored & (v_head >= 0)
    v_place = v_ptr + block * v_block_stride + v_head * v_head_stride + offset * v_token_stride + dim * v_dim_stride
    tl.store(v_place, low, mask=is_value)
    tl.store(v_place + HALF * v_dim_stride, high, mask=is_value)


def rope_store_kv(
    qkv: torch.Tensor,  # (rows, (num_heads + 2 * num_kv_heads) * head_dim); its queries are rotated in place
    cos: torch.Tensor,  # (max_position, head_dim / 2)
    sin: torch.Tensor,  # (max_position, head_dim / 2)
    positions: torch.Tensor,  # (rows,)
    slots: torch.Tensor,  # (rows,), -1 stores nothing
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    v_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    bias: torch.Tensor | None = None,  # ((num_heads + 2 * num_kv_heads) * head_dim,)
) -> None:
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    if len(qkv) == 0:
        return
    total_heads, block_half = qkv.shape[1] // head_dim, triton.next_power_of_2(head_dim // 2)
    block_heads = min(triton.next_power_of_2(total_heads), max(1, 512 // block_half))
    _rope_store_kv[(len(qkv), triton.cdiv(total_heads, block_heads))](
        qkv,
        cos,
        sin,
        positions,
        slots,
        k_cache,
        v_cache,
        qkv if bias is None else bias,
        qkv.stride(0),
        len(cos),
        num_blocks * block_size,
        *k_cache.stride(),
        *v_cache.stride(),
        NUM_HEADS=total_heads - 2 * num_kv_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=head_dim // 2,
        BLOCK_SIZE=block_size,
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=block_half,
        HAS_BIAS=bias is not None,
        **overlap_options(qkv.device),
    )
