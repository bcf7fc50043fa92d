"""What a decoder is made of.

H hidden, I intermediate, V vocabulary, Q query heads x head dim, K KV heads x head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerWeights:
    """One block; projections that read the same input are fused."""

    input_norm: torch.Tensor  # (H,)
    qkv: torch.Tensor  # (Q + 2 K, H)
    out: torch.Tensor  # (H, Q)
    post_norm: torch.Tensor  # (H,)
    gate_up: torch.Tensor  # (2 I, H)
    down: torch.Tensor  # (H, I)


@dataclass(frozen=True)
class DecoderWeights:
    """A trunk: all tensors of one dtype but the rotary tables."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_eps: float
    embedding: torch.Tensor  # (V, H)
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # (H,)
    cos: torch.Tensor  # (context, head_dim / 2) float32
    sin: torch.Tensor  # (context, head_dim / 2) float32
