"""The definition of step_score, and of the fold for scores that come from elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch


class LabelHead(NamedTuple):
    """A linear layer over labels, and the label whose probability is the score."""

    weight: torch.Tensor
    """(labels, size)."""
    bias: torch.Tensor | None
    """(labels,)."""
    good_index: int
    """The label; with one label there is no choice, and the score is its sigmoid."""


def fold(state_row: torch.Tensor, count: int, score: float) -> torch.Tensor:
    """The running last, min, product and mean, (4,) float32, after one more score.

    `state_row`, (4,) float32, holds them after `count` scores; with count 0 its content does not matter. It
    is not changed. A NaN score is NaN in `last`, and in the other three from then on.
    """
    score = torch.as_tensor(score, dtype=torch.float32)
    if count == 0:
        return score.repeat(4)
    _, least, product, mean = state_row
    return torch.stack([score, torch.minimum(least, score), product * score, mean + (score - mean) / (count + 1)])


def step_score(
    hidden: torch.Tensor,  # (num_hidden_rows, size)
    rows: torch.Tensor,  # (n,) int32: which rows of hidden are scored
    head: LabelHead,
    state: torch.Tensor | None = None,  # (num_slots, 4) float32: last, min, product, mean of each slot
    counts: torch.Tensor | None = None,  # (num_slots,) int32: scores folded into each slot so far
    slot: torch.Tensor | None = None,  # (n,) int32: where each score goes, in this order; None: nowhere
    mask: torch.Tensor | None = None,  # (n,) bool: which of them are scored at all; None: all
) -> torch.Tensor:
    if mask is not None:
        scores = torch.full((len(rows),), torch.nan, dtype=torch.promote_types(hidden.dtype, torch.float32))
        scores[mask] = step_score(hidden, rows[mask], head, state, counts, None if slot is None else slot[mask])
        return scores
    weight, bias, good_index = head
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden[rows.long()].to(wide) @ weight.to(wide).T
    if bias is not None:
        logits = logits + bias.to(wide)
    is_binary = weight.shape[0] == 1
    scores = logits[:, 0].sigmoid() if is_binary else logits.softmax(-1)[:, good_index]
    for s, score in zip(() if slot is None else slot.tolist(), () if slot is None else scores, strict=True):
        state[s] = fold(state[s], int(counts[s]), score)
        counts[s] += 1
    return scores
