"""The definition of rms_norm. Rounds where transformers' Llama does, so that bf16 agrees with it too."""

from __future__ import annotations

import torch


def rms_norm(
    x: torch.Tensor,  # (rows, hidden)
    weight: torch.Tensor,  # (hidden,)
    eps: float,
    residual: torch.Tensor | None = None,  # (rows, hidden); becomes residual + x
    out: torch.Tensor | None = None,  # (rows, hidden)
) -> torch.Tensor:
    if residual is not None:
        residual += x
        x = residual
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    result = weight * normed.to(x.dtype)
    return result if out is None else out.copy_(result)
