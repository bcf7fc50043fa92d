"""Imported before any Triton kernel: they then run in Triton's interpreter, on a CPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read where triton, and a kernel, is defined

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

__all__ = ["DTYPES", "tl", "triton", "widened"]

assert not isinstance(tl.sum, JITFunction), "triton was imported before TRITON_INTERPRET was set"

DTYPES = (torch.float32, torch.float16)  # bfloat16 is silently wrong in the interpreter


def widened(inputs: dict) -> dict:
    """The same arguments with floats in float64, for the reference."""
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
