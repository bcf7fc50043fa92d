"""Programmatic dependent launch of Triton's kernels: on sm_90 or newer one starts while the one before it still runs.

csrc/cuda/device.h does the same for CUDA's. A kernel that is launched with `overlap_options` calls
`await_earlier_kernels` before it reads or writes anything but weights.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def await_earlier_kernels(CAN_OVERLAP: tl.constexpr):
    """What earlier kernels write is there from here on, and the next one may be started."""
    if CAN_OVERLAP:  # no part of Triton's interpreter
        gdc_wait()
        gdc_launch_dependents()


@cache
def overlap_options(device: torch.device) -> dict[str, bool]:
    """Arguments of a launch on the device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"CAN_OVERLAP": False}
    return {"CAN_OVERLAP": True, "launch_pdl": True}
