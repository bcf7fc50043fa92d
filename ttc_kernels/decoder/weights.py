"""The weights of a decoder.

H hidden, I intermediate, V vocabulary, Q query heads x head dim, K KV heads x head dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

# A tensor; for `PackedDecoder` also an iterable of runs of its rows, in order, each read before the next is made.
Matrix = torch.Tensor | Iterable[torch.Tensor]


@dataclass(frozen=True)
class LayerWeights:
    """One block; projections that read the same input are fused."""

    input_norm: Matrix  # (H,)
    qkv: Matrix  # (Q + 2 K, H)
    out: Matrix  # (H, Q)
    post_norm: Matrix  # (H,)
    gate_up: Matrix  # (2 I, H)
    down: Matrix  # (H, I)


@dataclass(frozen=True)
class DecoderWeights:
    """A trunk. All tensors have one dtype, except the rotary tables."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_eps: float
    embedding: torch.Tensor  # (V, H)
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # (H,)
    cos: torch.Tensor  # (context, head_dim / 2) float32
    sin: torch.Tensor  # (context, head_dim / 2) float32
    intermediate_size: int | None = None  # I; None: taken from the first layer's `down`
