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
    windows: tuple[int, ...] = ()  # tokens that a row sees, of each layer with a sliding window


def attention_flops(shape: ModelShape, num_keys: int) -> int:
    """FLOPs of QK^T and PV for `num_keys` (query, key) pairs, counted in each layer."""
    return 4 * shape.num_heads * shape.head_dim * num_keys


def num_keys(first: int, num_tokens: int, window: int | None = None) -> int:
    """(query, key) pairs of positions first .. first + num_tokens - 1 in a layer, each with all before it and itself,
    or with the last `window` of them."""
    if window is None:
        return num_tokens * (2 * first + num_tokens + 1) // 2

    def up_to(end: int) -> int:
        full = min(end, window)  # rows that see all that is before them
        return full * (full + 1) // 2 + (end - full) * window

    return up_to(first + num_tokens) - up_to(first)


def forward_flops(shape: ModelShape, first: int, num_tokens: int, num_logits: int | None = None) -> int:
    """FLOPs of a forward over positions first .. first + num_tokens - 1, each attending to all before it.

    In a layer with a sliding window a position attends to those within it. `num_logits` is the number of positions
    whose logits are computed, by default all.
    """
    num_logits = num_tokens if num_logits is None else num_logits
    pairs = (shape.num_layers - len(shape.windows)) * num_keys(first, num_tokens)
    for window in shape.windows:
        pairs += num_keys(first, num_tokens, window)
    trunk = shape.num_matmul_params - shape.num_head_params
    return 2 * (trunk * num_tokens + shape.num_head_params * num_logits) + attention_flops(shape, pairs)
