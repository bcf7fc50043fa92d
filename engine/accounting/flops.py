"""FLOPs of a decoder's forward pass: 2·N per token, and attention by context length."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need to know of a model."""

    num_matmul_params: int  # weights that multiply every token; the input embedding is a look-up
    num_head_params: int  # of these, those of the LM head, which only sampled positions pay
    num_layers: int
    num_heads: int
    head_dim: int


def attention_flops(shape: ModelShape, num_keys: int) -> int:
    """FLOPs of QK^T and PV over all layers for `num_keys` (query, key) pairs."""
    return 4 * shape.num_layers * shape.num_heads * shape.head_dim * num_keys


def forward_flops(shape: ModelShape, first: int, num_tokens: int, num_logits: int | None = None) -> int:
    """FLOPs of a forward over positions first .. first + num_tokens - 1, each attending to all before it.

    `num_logits` is the number of positions whose logits are computed, by default all.
    """
    num_logits = num_tokens if num_logits is None else num_logits
    num_keys = num_tokens * first + num_tokens * (num_tokens + 1) // 2
    trunk = shape.num_matmul_params - shape.num_head_params
    return 2 * (trunk * num_tokens + shape.num_head_params * num_logits) + attention_flops(shape, num_keys)
