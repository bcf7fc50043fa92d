"""The buffers of one forward of the trunk.

Shapes: R rows (tokens of all branches of a batch), H hidden, I intermediate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ttc_kernels.decoder import DecoderWeights
from ttc_kernels.fused_linear import Scratch, tiles_of

# torch's CPU matrix products give a row the same bits in every batch of at least 16 rows, and
# other bits in smaller ones (tests/model/test_batch_independence.py); smaller batches are padded.
MIN_ROWS = 16


@dataclass(frozen=True)
class Views:
    """The buffers of one forward of R rows. Matrix products use the `padded` ones, of max(R, 16) rows."""

    residual: torch.Tensor  # (R, H)
    normed: torch.Tensor
    delta: torch.Tensor
    qkv: torch.Tensor  # (R, q + 2 kv)
    heads: torch.Tensor  # (R, all heads, head dim), the same memory
    normed_heads: torch.Tensor  # (R, all heads, head dim)
    query: torch.Tensor  # (R, heads, head dim), within qkv
    attended: torch.Tensor  # (R, heads, head dim)
    flat_attended: torch.Tensor  # (R, q), the same memory
    gate_up: torch.Tensor  # (R, 2 I)
    activated: torch.Tensor  # (R, I)
    padded_normed: torch.Tensor
    padded_delta: torch.Tensor
    padded_qkv: torch.Tensor
    padded_attended: torch.Tensor  # (max(R, 16), q)
    padded_gate_up: torch.Tensor
    padded_activated: torch.Tensor


class Workspace:
    """Buffers for batches of up to `size` rows, allocated once and used by all layers; unused rows stay finite."""

    def __init__(self, weights: DecoderWeights, size: int, has_normed_heads: bool = False):
        layer, like = weights.layers[0], weights.embedding
        self.layer, self.size = layer, size
        hidden, inter = layer.down.shape
        self.heads = (weights.num_heads, weights.head_dim)
        self.residual = like.new_zeros(size, hidden)
        self.normed = like.new_zeros(size, hidden)
        self.delta = like.new_zeros(size, hidden)
        self.qkv = like.new_zeros(size, len(layer.qkv))
        self.normed_heads = like.new_zeros(size if has_normed_heads else 0, len(layer.qkv))
        self.attended = like.new_zeros(size, layer.out.shape[1])
        self.gate_up = like.new_zeros(size, 2 * inter)
        self.activated = like.new_zeros(size, inter)
        self._views: dict[int, Views] = {}  # slicing costs as much as a small kernel

    @cached_property
    def scratch(self) -> Scratch:
        """What the fused products of every layer need."""
        layer, (hidden, inter) = self.layer, self.layer.down.shape
        shapes = [(len(layer.qkv), hidden, False), (hidden, layer.out.shape[1], False)]
        shapes += [(inter, hidden, True), (hidden, inter, False)]
        itemsize = layer.down.itemsize
        tilings = [tiles_of(self.size, num_out, width, itemsize, gated) for num_out, width, gated in shapes]
        return Scratch(tilings, layer.down.device)

    def views(self, rows: int) -> Views:
        """The buffers cut to `rows` rows."""
        if rows not in self._views:
            self._views[rows] = self._cut(rows)
        return self._views[rows]

    def _cut(self, rows: int) -> Views:
        q_out, padded = self.heads[0] * self.heads[1], max(rows, MIN_ROWS)
        return Views(
            residual=self.residual[:rows],
            normed=self.normed[:rows],
            delta=self.delta[:rows],
            qkv=self.qkv[:rows],
            heads=self.qkv[:rows].unflatten(1, (-1, self.heads[1])),
            normed_heads=self.normed_heads[:rows].unflatten(1, (-1, self.heads[1])),
            query=self.qkv[:rows, :q_out].unflatten(1, self.heads),
            attended=self.attended[:rows].unflatten(1, self.heads),
            flat_attended=self.attended[:rows],
            gate_up=self.gate_up[:rows],
            activated=self.activated[:rows],
            padded_normed=self.normed[:padded],
            padded_delta=self.delta[:padded],
            padded_qkv=self.qkv[:padded],
            padded_attended=self.attended[:padded],
            padded_gate_up=self.gate_up[:padded],
            padded_activated=self.activated[:padded],
        )
