"""The definition of fused_linear: the ops that it joins, one after the other, each of which rounds its result."""

from __future__ import annotations

import torch

from ttc_kernels.rms_norm.reference import rms_norm
from ttc_kernels.swiglu.reference import swiglu


def fused_linear(
    x: torch.Tensor,  # (rows, width)
    weight: torch.Tensor,  # (outputs, width); if gated (2 * outputs, width): the gates', then the ups'
    norm: torch.Tensor | None = None,  # (width,): the weights of an RMSNorm of x
    eps: float = 0.0,
    residual: torch.Tensor | None = None,  # (rows, outputs); becomes residual + product
    is_gated: bool = False,
    out: torch.Tensor | None = None,  # (rows, outputs)
) -> torch.Tensor:
    if norm is not None:
        x = rms_norm(x, norm, eps)
    product = x @ weight.t()
    if is_gated:
        product = swiglu(product)
    if residual is not None:
        return residual.add_(product)
    return product if out is None else out.copy_(product)
