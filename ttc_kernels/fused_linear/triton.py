"""fused_linear on a GPU, in one launch, for as few rows as a decode step has: the time goes into reading the weights.

A program multiplies a block of rows by the weights of a block of outputs, or by a part of their width; the last part
to arrive then adds up what all of them have left in memory, in their order. Where rows are normed, the sums of their
squares grow beside the products, which are scaled at the end. Rounds less often than reference.py: neither the normed
row before its weights multiply it, nor the product before SwiGLU or the sum with the residual.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ttc_kernels.fused_linear.tiles import Scratch, Tiles
from ttc_kernels.overlap import await_earlier_kernels, overlap_options

LINE = tl.constexpr(128)  # bytes that a prefetch brings
NUM_LINES = tl.constexpr(8)  # of every row of weights in a program's part that are prefetched


@triton.jit
def _prefetch(ptr):
    """Brings what lies at these addresses to the L2 cache; no part of Triton's interpreter."""
    instruction: tl.constexpr = "prefetch.global.L2 [$1]; mov.b32 $0, 0;"
    tl.inline_asm_elementwise(instruction, "=r,l", [ptr.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _load(ptr, is_there, IS_WHOLE: tl.constexpr):
    if IS_WHOLE:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=is_there, other=0.0)


@triton.jit
def _multiply(
    x_ptr, weight_ptr, up_ptr, norm_ptr, first, end, width,
    HAS_NORM: tl.constexpr, IS_GATED: tl.constexpr, IS_WHOLE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """(products, the ups' products, sums of squares) over a part of the width."""
    at = tl.arange(0, BLOCK_WIDTH)
    product = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    up = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)
    if HAS_NORM:
        next_norm = tl.load(norm_ptr + first + at, mask=first + at < width, other=0.0)
    for start in range(first, end, BLOCK_WIDTH):
        place = start + at
        is_there = place < width
        x = _load(x_ptr + place[None, :], is_there[None, :], IS_WHOLE)
        weight = _load(weight_ptr + place[:, None], is_there[:, None], IS_WHOLE)
        if HAS_NORM:
            norm = next_norm.to(tl.float32)  # loaded a step before: it is too small for an asynchronous copy
            next_norm = tl.load(norm_ptr + place + BLOCK_WIDTH, mask=place + BLOCK_WIDTH < width, other=0.0)
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            x = (wide * norm[None, :]).to(x.dtype)
        product = tl.dot(x, weight, product, input_precision="ieee")
        if IS_GATED:
            weight = _load(up_ptr + place[:, None], is_there[:, None], IS_WHOLE)
            up = tl.dot(x, weight, up, input_precision="ieee")
    return product, up, squares


@triton.jit
def _join(
    product, up, squares, num_rows, partial_ptr, squares_ptr, arrived_ptr, split,
    HAS_NORM: tl.constexpr, IS_GATED: tl.constexpr, NUM_SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Leaves a split's part in memory. The last one gets the sums of all parts; for the others num_rows becomes 0."""
    NUM_PRODUCTS: tl.constexpr = 2 if IS_GATED else 1
    SIZE: tl.constexpr = BLOCK_ROWS * BLOCK_OUT
    partial_ptr += tl.arange(0, BLOCK_ROWS)[:, None] * BLOCK_OUT + tl.arange(0, BLOCK_OUT)[None, :]
    squares_ptr += tl.arange(0, BLOCK_ROWS)
    own_ptr = partial_ptr + split * (NUM_PRODUCTS * SIZE)
    tl.store(own_ptr, product)
    if IS_GATED:
        tl.store(own_ptr + SIZE, up)
    if HAS_NORM:
        tl.store(squares_ptr + split * BLOCK_ROWS, squares)
    tl.debug_barrier()  # of the program's threads, the first of which then counts for all of them
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == NUM_SPLITS - 1:
        tl.store(arrived_ptr, 0)  # for the next launch
        product = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
        up = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
        squares = tl.zeros((BLOCK_ROWS,), tl.float32)
        for part in tl.static_range(NUM_SPLITS):
            part_ptr = partial_ptr + part * (NUM_PRODUCTS * SIZE)
            product += tl.load(part_ptr, cache_modifier=".cg")
            if IS_GATED:
                up += tl.load(part_ptr + SIZE, cache_modifier=".cg")
            if HAS_NORM:
                squares += tl.load(squares_ptr + part * BLOCK_ROWS, cache_modifier=".cg")
    else:
        num_rows *= 0
    return product, up, squares, num_rows


@triton.jit(do_not_specialize=["num_rows"])
def _fused_linear(
    x_ptr, weight_ptr, norm_ptr, residual_ptr, out_ptr, partial_ptr, squares_ptr, arrived_ptr,
    num_rows, num_out, width, x_stride, residual_stride, out_stride, eps,
    HAS_NORM: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    IS_WHOLE: tl.constexpr,  # whether BLOCK_WIDTH divides the width
    CAN_OVERLAP: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(2)
    num_steps = tl.cdiv(tl.cdiv(width, BLOCK_WIDTH), NUM_SPLITS)
    first = split * num_steps * BLOCK_WIDTH
    end = tl.minimum(width, first + num_steps * BLOCK_WIDTH)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    # What lies beyond the last row or output is computed with the last one's values, and not stored.
    x_ptr += tl.minimum(row, num_rows - 1).to(tl.int64)[:, None] * x_stride
    output = tl.minimum(column, num_out - 1).to(tl.int64)[None, :]
    up_ptr = weight_ptr + (output + num_out) * width
    weight_ptr += output * width
    if CAN_OVERLAP:  # weights do not change: their reads begin before the kernel before this one has ended
        LINE_VALUES: tl.constexpr = LINE // (weight_ptr.dtype.scalar.element_ty.primitive_bitwidth // 8)
        line = tl.minimum(first + tl.arange(0, NUM_LINES) * LINE_VALUES, end - 1)[:, None]
        _prefetch(weight_ptr + line)
        if IS_GATED:
            _prefetch(up_ptr + line)
    await_earlier_kernels(CAN_OVERLAP)
    product, up, squares = _multiply(
        x_ptr, weight_ptr, up_ptr, norm_ptr, first, end, width,
        HAS_NORM, IS_GATED, IS_WHOLE, BLOCK_ROWS, BLOCK_OUT, BLOCK_WIDTH,
    )  # fmt: skip
    if NUM_SPLITS > 1:
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        NUM_SQUARES: tl.constexpr = NUM_SPLITS * BLOCK_ROWS
        partial_ptr += tile * (NUM_SQUARES * BLOCK_OUT * (2 if IS_GATED else 1))
        product, up, squares, num_rows = _join(
            product, up, squares, num_rows, partial_ptr, squares_ptr + tile * NUM_SQUARES, arrived_ptr + tile, split,
            HAS_NORM, IS_GATED, NUM_SPLITS, BLOCK_ROWS, BLOCK_OUT,
        )  # fmt: skip
    if HAS_NORM:
        scale = tl.rsqrt(squares / width + eps)[:, None]
        product *= scale
        up *= scale
    if IS_GATED:
        product = product / (1.0 + tl.exp(-product)) * up
    is_inside = (row < num_rows)[:, None] & (column < num_out)[None, :]
    wide_row = row.to(tl.int64)[:, None]
    if HAS_RESIDUAL:
        place = residual_ptr + wide_row * residual_stride + column[None, :]
        product += tl.load(place, mask=is_inside, other=0.0).to(tl.float32)
    place = out_ptr + wide_row * out_stride + column[None, :]
    tl.store(place, product.to(out_ptr.dtype.element_ty), mask=is_inside)


def fused_linear(
    x: torch.Tensor,  # (rows, width)
    weight: torch.Tensor,  # (outputs, width); if gated (2 * outputs, width)
    norm: torch.Tensor | None,  # (width,)
    eps: float,
    residual: torch.Tensor | None,  # (rows, outputs)
    is_gated: bool,
    out: torch.Tensor,  # (rows, outputs); may be the residual
    tiles: Tiles,
    scratch: Scratch,
) -> torch.Tensor:
    (num_rows, width), num_out = x.shape, out.shape[1]
    summand = out if residual is None else residual
    _fused_linear[(tiles.num_row_blocks, tiles.num_out_blocks, tiles.num_splits)](
        x,
        weight,
        x if norm is None else norm,
        summand,
        out,
        scratch.partial,
        scratch.squares,
        scratch.arrived,
        num_rows,
        num_out,
        width,
        x.stride(0),
        summand.stride(0),
        out.stride(0),
        eps,
        HAS_NORM=norm is not None,
        IS_GATED=is_gated,
        HAS_RESIDUAL=residual is not None,
        NUM_SPLITS=tiles.num_splits,
        BLOCK_ROWS=tiles.block_rows,
        BLOCK_OUT=tiles.block_out,
        BLOCK_WIDTH=tiles.block_width,
        IS_WHOLE=width % tiles.block_width == 0,
        num_stages=tiles.num_stages,
        **overlap_options(x.device),
    )
    return out
