"""tree_attention on a GPU, in two launches: partial results of units of work, then their merge row by row.

The units are those of csrc/cuda/work.h; both launches read their number and places on the device, so that a captured
CUDA graph serves whatever tree the list was made of. A partial result is the attention over a part of a row's keys, in
float32, and the natural logarithm of that part's sum of exponentials.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ttc_kernels.tree_attention.work import NARROW, NUM_WANTED, WIDE, WorkHeader, WorkUnit, work_of

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
DIRECT = tl.constexpr(-1)  # the slot of a unit that has all keys of its rows, and so writes `out` itself

# Fields of the work list, under names that a kernel may read.
NUM_UNITS = tl.constexpr(int(WorkHeader.NUM_UNITS))
UNITS_AT = tl.constexpr(int(WorkHeader.UNITS_AT))
BLOCKS_AT = tl.constexpr(int(WorkHeader.BLOCKS_AT))
MERGE_START_AT = tl.constexpr(int(WorkHeader.MERGE_START_AT))
MERGE_SLOTS_AT = tl.constexpr(int(WorkHeader.MERGE_SLOTS_AT))
UNIT_INTS = tl.constexpr(len(WorkUnit))
ROW_LO = tl.constexpr(int(WorkUnit.ROW_LO))
PACKED_LO = tl.constexpr(int(WorkUnit.PACKED_LO))
NUM_PACKED = tl.constexpr(int(WorkUnit.NUM_PACKED))
BLOCK_OFFSET = tl.constexpr(int(WorkUnit.BLOCK_OFFSET))
KV_LO = tl.constexpr(int(WorkUnit.KV_LO))
KV_HI = tl.constexpr(int(WorkUnit.KV_HI))
CAUSAL_ADD = tl.constexpr(int(WorkUnit.CAUSAL_ADD))
SLOT_BASE = tl.constexpr(int(WorkUnit.SLOT_BASE))


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, out_ptr, partial_ptr, lse_ptr, unit_ptr, first, blocks_ptr, scale, kv_head, num_heads,
    q_row_stride, q_head_stride, k_block_stride, k_token_stride, k_dim_stride,
    v_block_stride, v_token_stride, v_dim_stride,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """BLOCK_ROWS packed rows of a unit, from `first` on, over a run of keys; k_ptr and v_ptr are at the KV head."""
    row_lo = tl.load(unit_ptr + ROW_LO)
    at = first + tl.arange(0, BLOCK_ROWS)
    packed = tl.load(unit_ptr + PACKED_LO) + at
    is_row = at < tl.load(unit_ptr + NUM_PACKED)
    blocks_ptr += tl.load(unit_ptr + BLOCK_OFFSET)
    key_lo = tl.load(unit_ptr + KV_LO)
    key_hi = tl.load(unit_ptr + KV_HI)
    slot = tl.load(unit_ptr + SLOT_BASE)
    row = row_lo + packed // GROUP
    head = kv_head * GROUP + packed % GROUP
    limit = tl.minimum(key_hi, row + tl.load(unit_ptr + CAUSAL_ADD))
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    is_inside = is_row[:, None] & is_dim[None, :]
    q_place = row.to(tl.int64) * q_row_stride + head * q_head_stride
    q = tl.load(q_ptr + q_place[:, None] + dim[None, :], mask=is_inside, other=0.0)

    top = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    for start in range(key_lo, key_hi, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        is_key = key < key_hi
        block = tl.load(blocks_ptr + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        offset = key % BLOCK_SIZE
        k_place = block * k_block_stride + offset * k_token_stride
        is_there = is_dim[:, None] & is_key[None, :]
        k = tl.load(k_ptr + k_place[None, :] + dim[:, None] * k_dim_stride, mask=is_there, other=0.0)
        score = tl.dot(q, k, input_precision="ieee") * (scale * LOG2_E)
        score = tl.where(key[None, :] < limit[:, None], score, -float("inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        zero = tl.where(new_top == -float("inf"), 0.0, new_top)  # the row has seen no key yet
        weight = tl.exp2(score - zero[:, None])
        shrink = tl.exp2(top - zero)
        total = total * shrink + tl.sum(weight, 1)
        v_place = block * v_block_stride + offset * v_token_stride
        v = tl.load(
            v_ptr + v_place[:, None] + dim[None, :] * v_dim_stride, mask=is_key[:, None] & is_dim[None, :], other=0.0
        )
        acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = new_top

    result = acc / total[:, None]
    if slot == DIRECT:
        place = (row.to(tl.int64) * num_heads + head)[:, None] * HEAD_DIM + dim[None, :]
        tl.store(out_ptr + place, result.to(out_ptr.dtype.element_ty), mask=is_inside)
    else:
        is_visible = is_row & (limit > key_lo)
        partial = (slot + row - row_lo).to(tl.int64) * num_heads + head
        tl.store(lse_ptr + partial, (top + tl.log2(total)) * LN_2, mask=is_visible)
        is_stored = is_visible[:, None] & is_dim[None, :]
        tl.store(partial_ptr + partial[:, None] * HEAD_DIM + dim[None, :], result, mask=is_stored)


@triton.jit
def _partials(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    work_ptr,
    scale,
    num_heads,
    num_kv_heads,
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
    NARROW: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """The programs divide the units of all KV heads among themselves; a unit of few rows takes a narrow tile, one of
    many a wide tile."""
    num_items = tl.load(work_ptr + NUM_UNITS) * num_kv_heads
    units_ptr = work_ptr + tl.load(work_ptr + UNITS_AT)
    blocks_ptr = work_ptr + tl.load(work_ptr + BLOCKS_AT)
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        unit_ptr = units_ptr + UNIT_INTS * (item // num_kv_heads)
        kv_head = item % num_kv_heads
        k_head_ptr = k_ptr + kv_head.to(tl.int64) * k_head_stride
        v_head_ptr = v_ptr + kv_head.to(tl.int64) * v_head_stride
        num_packed = tl.load(unit_ptr + NUM_PACKED)
        if num_packed <= NARROW:
            _attend(
                q_ptr, k_head_ptr, v_head_ptr, out_ptr, partial_ptr, lse_ptr, unit_ptr, 0, blocks_ptr, scale, kv_head,
                num_heads, q_row_stride, q_head_stride, k_block_stride, k_token_stride, k_dim_stride,
                v_block_stride, v_token_stride, v_dim_stride,
                GROUP, HEAD_DIM, BLOCK_DIM, BLOCK_SIZE, BLOCK_KEYS, NARROW,
            )  # fmt: skip
        else:
            for first in range(0, num_packed, WIDE):
                _attend(
                    q_ptr, k_head_ptr, v_head_ptr, out_ptr, partial_ptr, lse_ptr, unit_ptr, first, blocks_ptr, scale,
                    kv_head, num_heads, q_row_stride, q_head_stride, k_block_stride, k_token_stride, k_dim_stride,
                    v_block_stride, v_token_stride, v_dim_stride,
                    GROUP, HEAD_DIM, BLOCK_DIM, BLOCK_SIZE, BLOCK_KEYS, WIDE,
                )  # fmt: skip


@triton.jit
def _merge(
    partial_ptr,
    lse_ptr,
    work_ptr,
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
    start_ptr = work_ptr + tl.load(work_ptr + MERGE_START_AT) + row
    slots_ptr = work_ptr + tl.load(work_ptr + MERGE_SLOTS_AT)
    first = tl.load(start_ptr)
    end = tl.load(start_ptr + 1)
    if tl.load(slots_ptr + first, mask=first < end, other=0) == DIRECT:
        end = first  # the row is there already
        is_inside = is_inside & (head < 0)[:, None]
    top = tl.full((BLOCK_HEADS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)
    acc = tl.zeros((BLOCK_HEADS, BLOCK_DIM), tl.float32)
    for i in range(first, end):
        place = tl.load(slots_ptr + i).to(tl.int64) * num_heads + head
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
    plan,  # or an AttentionWork
    scale: float,
    out: torch.Tensor,  # (rows, num_heads, head_dim), contiguous
) -> torch.Tensor:
    (rows, num_heads, head_dim), (_, num_kv_heads, block_size, _) = q.shape, k_cache.shape
    if rows == 0:
        return out
    work = work_of(plan, q, k_cache)
    block_dim = max(16, triton.next_power_of_2(head_dim))
    is_fp32 = q.dtype is torch.float32  # its products stay in registers, which must not spill
    num_items = NUM_WANTED if work.num_units is None else work.num_units * num_kv_heads
    _partials[(max(1, min(NUM_WANTED, num_items)),)](
        q,
        k_cache,
        v_cache,
        out,
        work.partial,
        work.partial_lse,
        work.ints,
        scale,
        num_heads,
        num_kv_heads,
        *q.stride()[:2],
        *k_cache.stride(),
        *v_cache.stride(),
        NARROW=NARROW,
        WIDE=WIDE,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_SIZE=block_size,
        BLOCK_KEYS=min(64, max(16, (8192 if is_fp32 else 16384) // (block_dim * q.element_size()))),
        num_warps=8 if is_fp32 else 4,
        num_stages=1 if block_dim * q.element_size() > 512 else 2,  # 99 KiB are the least that a GPU has
    )
    block_heads = min(triton.next_power_of_2(num_heads), max(1, 1024 // block_dim))
    _merge[(rows, triton.cdiv(num_heads, block_heads))](
        work.partial,
        work.partial_lse,
        work.ints,
        out,
        num_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_HEADS=block_heads,
        num_warps=2,
    )
    return out
