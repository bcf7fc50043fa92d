"""What every op checks of a tensor before its address goes to a kernel: a wrong one would end the process."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def check_tensor(
    op: str, name: str, x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """Raises ValueError, with the op and the argument's name, unless x is contiguous and of all three."""
    if x is None:  # which the native code takes for an argument that may be left out
        raise ValueError(f"{op}: {name} must be a tensor, got None")
    if x.shape != shape or x.dtype is not dtype or not x.is_contiguous() or x.device != device:
        raise _wrong(op, name, x, f"contiguous, {tuple(shape)} {dtype}", device)


def check_rows(
    op: str, name: str, x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """As `check_tensor` for a matrix whose rows may lie apart, but not their elements."""
    if x.shape != shape or x.dtype is not dtype or x.stride(1) != 1 or x.device != device:
        raise _wrong(op, name, x, f"{tuple(shape)} {dtype} with adjacent elements", device)


def describe(x: torch.Tensor) -> str:
    """Shape, type, strides and place of a tensor, for an error."""
    return f"{tuple(x.shape)} {x.dtype} with strides {x.stride()} on {x.device}"


def _wrong(op: str, name: str, x: torch.Tensor, must: str, device: torch.device) -> ValueError:
    where = "" if x.device == device else f" on {device}"
    return ValueError(f"{op}: {name} must be {must}{where}, got {describe(x)}")
