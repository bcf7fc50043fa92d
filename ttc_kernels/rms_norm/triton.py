"""rms_norm on a GPU: a program a row, which stays in registers. Rounds where reference.py does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ttc_kernels.overlap import await_earlier_kernels, overlap_options

MAX_HIDDEN = 1 << 16


@triton.jit
def _rms_norm(
    x_ptr,
    weight_ptr,
    residual_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    out_stride,
    hidden,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    CAN_OVERLAP: tl.constexpr,
):
    await_earlier_kernels(CAN_OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    is_inside = at < hidden
    x = tl.load(x_ptr + row * x_stride + at, mask=is_inside, other=0.0)
    if HAS_RESIDUAL:
        place = residual_ptr + row * residual_stride + at
        x = (tl.load(place, mask=is_inside, other=0.0).to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(place, x, mask=is_inside)
    wide = x.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / hidden + eps)).to(x.dtype)
    weight = tl.load(weight_ptr + at, mask=is_inside, other=0.0)
    result = weight.to(tl.float32) * normed.to(tl.float32)
    tl.store(out_ptr + row * out_stride + at, result.to(x.dtype), mask=is_inside)


def rms_norm(
    x: torch.Tensor,  # (rows, hidden)
    weight: torch.Tensor,  # (hidden,)
    eps: float,
    residual: torch.Tensor | None,  # (rows, hidden); becomes residual + x
    out: torch.Tensor,  # (rows, hidden)
) -> torch.Tensor:
    rows, hidden = x.shape
    if hidden > MAX_HIDDEN:
        raise ValueError(f"rms_norm: the Triton kernel takes a hidden size up to {MAX_HIDDEN}, got {hidden}")
    if rows == 0 or hidden == 0:
        return out
    block = triton.next_power_of_2(hidden)
    summand = x if residual is None else residual
    _rms_norm[(rows,)](
        x,
        weight,
        summand,
        out,
        x.stride(0),
        summand.stride(0),
        out.stride(0),
        hidden,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=min(32, max(1, block // 512)),
        **overlap_options(x.device),
    )
    return out
