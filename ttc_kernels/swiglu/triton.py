"""swiglu on a GPU: a program for each stretch of a row. silu(gate) is rounded before the product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ttc_kernels.overlap import await_earlier_kernels, overlap_options


@triton.jit
def _swiglu(
    gate_up_ptr, out_ptr, gate_up_stride, out_stride, size, BLOCK: tl.constexpr, CAN_OVERLAP: tl.constexpr
):  # fmt: skip
    await_earlier_kernels(CAN_OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < size
    place = gate_up_ptr + row * gate_up_stride + at
    gate = tl.load(place, mask=is_inside, other=0.0)
    up = tl.load(place + size, mask=is_inside, other=0.0)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    result = activated.to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * out_stride + at, result.to(gate.dtype), mask=is_inside)


def swiglu(
    gate_up: torch.Tensor,  # (rows, 2 * size): the gates, then the ups
    out: torch.Tensor,  # (rows, size); may be the gates
) -> torch.Tensor:
    rows, size = out.shape
    if rows == 0 or size == 0:
        return out
    block = min(1024, triton.next_power_of_2(size))
    grid = (rows, triton.cdiv(size, block))
    options = overlap_options(out.device)
    _swiglu[grid](gate_up, out, gate_up.stride(0), out.stride(0), size, BLOCK=block, **options)
    return out
