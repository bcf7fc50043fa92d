"""tree_attention on a GPU, in two launches: partial results of work items, then their merge row by row.

Partial results are float32, with the natural logarithm of the sum of exponentials that they stand for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ttc_kernels.tree_attention.schedule import NARROW, NUM_FIELDS, WIDE, schedule_of

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    partial_ptr,
    lse_ptr,
    work_ptr,
    blocks_ptr,
    scale,
    kv_head,
    num_heads,
    q_row_stride,
    q_head_stride,
    k_block_stride,
    k_token_stride,
    k_dim_stride,
    v_block_stride,
    v_token_stride,
    v_dim_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One work item: BLOCK_ROWS packed rows over a run of keys. k_ptr and v_ptr are at the KV head."""
    row_lo = tl.load(work_ptr)
    num_rows = tl.load(work_ptr + 1)
    packed = tl.load(work_ptr + 2) + tl.arange(0, BLOCK_ROWS)
    blocks_ptr += tl.load(work_ptr + 3)
    key_lo = tl.load(work_ptr + 4)
    row = packed // GROUP
    head = kv_head * GROUP + packed % GROUP
    is_row = row < num_rows
    limit = tl.minimum(tl.load(work_ptr + 5), tl.load(work_ptr + 6) + tl.load(work_ptr + 7) * row)
    key_hi = tl.max(tl.where(is_row, limit, 0), 0)
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    q_place = (row_lo + row).to(tl.int64) * q_row_stride + head * q_head_stride
    q = tl.load(q_ptr + q_place[:, None] + dim[None, :], mask=is_row[:, None] & is_dim[None, :], other=0.0)

    top = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    for start in range(key_lo, key_hi, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        is_key = key < key_hi
        block = tl.load(blocks_ptr + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        offset = key % BLOCK_SIZE
        k_place = block * k_block_stride + offset * k_token_stride
        k = tl.load(
            k_ptr + k_place[None, :] + dim[:, None] * k_dim_stride, mask=is_dim[:, None] & is_key[None, :], other=0.0
        )
        score = tl.dot(q, k, input_precision="ieee") * (scale * LOG2_E)
        score = tl.where(key[None, :] < limit[:, None], score, -float("inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        zero = tl.where(new_top == -float("inf"), 0.0, new_top)  # of a row that has seen no key yet
        weight = tl.exp2(score - zero[:, None])
        shrink = tl.exp2(top - zero)
        total = total * shrink + tl.sum(weight, 1)
        v_place = block * v_block_stride + offset * v_token_stride
        v = tl.load(
            v_ptr + v_place[:, None] + dim[None, :] * v_dim_stride, mask=is_key[:, None] & is_dim[None, :], other=0.0
        )
        acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = new_top

    partial = (tl.load(work_ptr + 8) + row).to(tl.int64) * num_heads + head
    is_visible = is_row & (limit > key_lo)
    tl.store(lse_ptr + partial, (top + tl.log2(total)) * LN_2, mask=is_visible)
    place = partial_ptr + partial[:, None] * HEAD_DIM + dim[None, :]
    tl.store(place, acc / total[:, None], mask=is_visible[:, None] & is_dim[None, :])


@triton.jit
def _partials(
    q_ptr,
    k_ptr,
    v_ptr,
    partial_ptr,
    lse_ptr,
    work_ptr,
    blocks_ptr,
    scale,
    num_heads,
    q_row_stride,
    q_head_stride,
    k_block_stride,
    k_head_stride,
    k_token_stride,
    k_dim_stride,
    v_block_stride,
    v_head_stride,
    v_token_stride,
    v_dim_stride,
    NUM_FIELDS: tl.constexpr,
    NARROW: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """A program for a work item and a KV head; few rows go in a narrow tile, many in a wide one."""
    work_ptr += tl.program_id(0) * NUM_FIELDS
    kv_head = tl.program_id(1)
    k_ptr += kv_head.to(tl.int64) * k_head_stride
    v_ptr += kv_head.to(tl.int64) * v_head_stride
    if tl.load(work_ptr + 9) == 0:
        _attend(
            q_ptr, k_ptr, v_ptr, partial_ptr, lse_ptr, work_ptr, blocks_ptr, scale, kv_head, num_heads,
            q_row_stride, q_head_stride, k_block_stride, k_token_stride, k_dim_stride,
            v_block_stride, v_token_stride, v_dim_stride,
            GROUP, HEAD_DIM, BLOCK_DIM, BLOCK_SIZE, BLOCK_KEYS, NARROW,
        )  # fmt: skip
    else:
        _attend(
            q_ptr, k_ptr, v_ptr, partial_ptr, lse_ptr, work_ptr, blocks_ptr, scale, kv_head, num_heads,
            q_row_stride, q_head_stride, k_block_stride, k_token_stride, k_dim_stride,
            v_block_stride, v_token_stride, v_dim_stride,
            GROUP, HEAD_DIM, BLOCK_DIM, BLOCK_SIZE, BLOCK_KEYS, WIDE,
        )  # fmt: skip


@triton.jit
def _merge(
    partial_ptr,
    lse_ptr,
    merge_start_ptr,
    merge_from_ptr,
    out_ptr,
    num_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """A program for some heads of a row: its partial results in position order; zeros where there are none."""
    row = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dim = tl.arange(0, BLOCK_DIM)
    is_head = head < num_heads
    is_inside = is_head[:, None] & (dim < HEAD_DIM)[None, :]
    top = tl.full((BLOCK_HEADS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)
    acc = tl.zeros((BLOCK_HEADS, BLOCK_DIM), tl.float32)
    for i in range(tl.load(merge_start_ptr + row), tl.load(merge_start_ptr + row + 1)):
        place = tl.load(merge_from_ptr + i).to(tl.int64) * num_heads + head
        lse = tl.load(lse_ptr + place, mask=is_head, other=0.0)
        partial = tl.load(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], mask=is_inside, other=0.0)
        new_top = tl.maximum(top, lse)
        shrink = tl.exp(top - new_top)
        weight = tl.exp(lse - new_top)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + partial * weight[:, None]
        top = new_top
    result = acc / tl.where(total == 0, 1.0, total)[:, None]
    place = out_ptr + (row.to(tl.int64) * num_heads + head)[:, None] * HEAD_DIM + dim[None, :]
    tl.store(place, result.to(out_ptr.dtype.element_ty), mask=is_inside)


def tree_attention(
    q: torch.Tensor,  # (rows, num_heads, head_dim), adjacent elements
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim), any strides
    v_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim), any strides
    plan,
    scale: float,
    out: torch.Tensor,  # (rows, num_heads, head_dim), contiguous
) -> torch.Tensor:
    (rows, num_heads, head_dim), (num_blocks, num_kv_heads, block_size, _) = q.shape, k_cache.shape
    if rows == 0:
        return out
    group = num_heads // num_kv_heads
    schedule = schedule_of(plan, rows, num_blocks, block_size, group, q.device)
    block_dim = max(16, triton.next_power_of_2(head_dim))
    is_fp32 = q.dtype is torch.float32  # its products stay in registers, which must not spill
    partial = torch.empty((schedule.num_partials, num_heads, head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((schedule.num_partials, num_heads), dtype=torch.float32, device=q.device)
    if len(schedule.work):
        _partials[(len(schedule.work), num_kv_heads)](
            q,
            k_cache,
            v_cache,
            partial,
            lse,
            schedule.work,
            schedule.blocks,
            scale,
            num_heads,
            *q.stride()[:2],
            *k_cache.stride(),
            *v_cache.stride(),
            NUM_FIELDS=NUM_FIELDS,
            NARROW=NARROW,
            WIDE=WIDE,
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim,
            BLOCK_SIZE=block_size,
            BLOCK_KEYS=min(64, max(16, (8192 if is_fp32 else 16384) // (block_dim * q.element_size()))),
            num_warps=8 if is_fp32 else 4,
            num_stages=1 if block_dim * q.element_size() > 512 else 2,  # 99 KiB are the least that a GPU has
        )
    block_heads = min(triton.next_power_of_2(num_heads), max(1, 1024 // block_dim))
    _merge[(rows, triton.cdiv(num_heads, block_heads))](
        partial,
        lse,
        schedule.merge_start,
        schedule.merge_from,
        out,
        num_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_HEADS=block_heads,
        num_warps=2,
    )
    return out
