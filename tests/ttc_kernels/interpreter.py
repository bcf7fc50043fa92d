"""Triton's interpreter, which runs the kernels on a CPU in the tests: tests/conftest.py turns it on."""

import torch
import triton

assert not isinstance(triton.language.sum, triton.JITFunction), "TRITON_INTERPRET was not set before triton's import"

DTYPES = (torch.float32, torch.float16)  # bfloat16 is silently wrong in the interpreter


def widened(inputs: dict) -> dict:
    """The same arguments with floats in float64, for the reference."""
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
