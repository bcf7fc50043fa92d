"""The definition of swiglu. silu(gate) is rounded before the product, as transformers does."""

from __future__ import annotations

import torch


def swiglu(
    gate_up: torch.Tensor,  # (rows, 2 * size): the gates, then the ups
    out: torch.Tensor | None = None,  # (rows, size)
) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    result = torch.nn.functional.silu(gate) * up
    return result if out is None else out.copy_(result)
