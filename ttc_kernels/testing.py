"""What the tests of every op share: the error budget, and outputs that cannot pass by accident."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch


def poisoned(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """A tensor of NaN: an output that a kernel must write in full, or a slot that it must not read."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def assert_within_budget(
    out: torch.Tensor,  # what the kernel wrote
    exact: torch.Tensor,  # the reference in float64, same shape
    low_precision: torch.Tensor,  # the plain torch run in out's dtype, same shape
    num_ulps: float = 4.0,
) -> None:
    """Asserts that `out` is at most twice as far from `exact` as a plain torch run of the same precision.

    Distance is the largest absolute error over the tensor. On top come `num_ulps` units in the last place of
    the largest exact value, for the cases that plain torch happens to compute exactly.
    """
    assert out.shape == exact.shape == low_precision.shape, (out.shape, exact.shape, low_precision.shape)
    assert exact.dtype == torch.float64, exact.dtype
    assert torch.isfinite(exact).all(), "the exact values are not finite"
    assert torch.isfinite(out).all(), f"{(~torch.isfinite(out)).sum()} of {out.numel()} values are not finite"
    if out.numel() == 0:
        return
    error = (out.double() - exact).abs().max().item()
    plain = (low_precision.double() - exact).abs().max().item()
    slack = num_ulps * torch.finfo(out.dtype).eps * exact.abs().max().item()
    assert error <= 2 * plain + slack, f"error {error:.3g}, plain torch {plain:.3g}, slack {slack:.3g}"


def in_dtypes(cases: Iterable, dtypes: Sequence[torch.dtype]) -> list:
    """The float32 cases of a list, each in every one of `dtypes`; its other cases differ from these in type alone."""
    return [replace(case, dtype=dtype) for case in cases if case.dtype is torch.float32 for dtype in dtypes]
