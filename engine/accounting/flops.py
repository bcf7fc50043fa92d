"""FLOPs of a decoder's forward pass: 2·N per token, and attention by context length."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that the formulas use."""

    num_matmul_params: int  # all weights but the input embedding, which is only looked up
    num_head_params: int  # those of them in the LM head, which multiply only positions with logits
    num_layers: int
    num_heads: int
    head_dim: int
    windows: tuple[int, ...] = ()  # tokens that a query attends to, for each layer with a sliding window


def attention_flops(shape: ModelShape, num_keys: int) -> int:
    """FLOPs of QK^T and PV for `num_keys` (query, key) pairs, which are summed over layers."""
    return 4 * shape.num_heads * shape.head_dim * num_keys


def num_keys(first: int, num_tokens: int, window: int | None = None) -> int:
    """(query, key) pairs of one layer, for queries at positions first .. first + num_tokens - 1.

    A query attends to itself and all positions before it, or to the last `window` of these.
    """
    if window is None:
        return num_tokens * (2 * first + num_tokens + 1) // 2

    def up_to(end: int) -> int:
        full = min(end, window)  # queries whose window cuts nothing
        return full * (full + 1) // 2 + (end - full) * window

    return up_to(first + num_tokens) - up_to(first)


def forward_flops(shape: ModelShape, first: int, num_tokens: int, num_logits: int | None = None) -> int:
    """FLOPs of a forward over positions first .. first + num_tokens - 1.

    A position attends to all before it, or to those within a layer's sliding window. `num_logits` is the number of
    positions whose logits are computed, by default all.
    """
    num_logits = num_tokens if num_logits is None else num_logits
    pairs = (shape.num_layers - len(shape.windows)) * num_keys(first, num_tokens)
    for window in shape.windows:
        pairs += num_keys(first, num_tokens, window)
    trunk = shape.num_matmul_params - shape.num_head_params
    return 2 * (trunk * num_tokens + shape.num_head_params * num_logits) + attention_flops(shape, pairs)
