"""The trunk layer by layer over torch's matrix products: for models too large for the packed one.

Shapes: R rows (tokens of all branches of a batch), H hidden, I intermediate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttc_kernels.decoder import DecoderWeights
from ttc_kernels.rms_norm import rms_norm
from ttc_kernels.rope_store_kv import rope_store_kv
from ttc_kernels.swiglu import swiglu
from ttc_kernels.tree_attention import tree_attention

# torch's CPU matrix products give a row the same bits in every batch of at least 16 rows, and
# other bits in smaller ones (tests/model/test_batch_independence.py); smaller batches are padded.
MIN_ROWS = 16


def padded_mm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """out[:] = x @ weight.T; all three may have spare rows that are computed and ignored."""
    torch.mm(x, weight.t(), out=out)


def linear(x: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(len(rows), num_out) float32 of x[rows] @ weight.T; the product is padded to 16 rows."""
    num = rows.shape[0]
    padded = max(num, MIN_ROWS)
    picked = x.new_zeros(padded, x.shape[1])
    torch.index_select(x, 0, rows, out=picked[:num])
    out = x.new_empty(padded, weight.shape[0])
    padded_mm(picked, weight, out)
    return out[:num].float()


@dataclass(frozen=True)
class Views:
    """The buffers of one forward of R rows. Matrix products take all of max(R, 16) rows, the `padded` ones;
    everything else takes R."""

    residual: torch.Tensor  # (R, H)
    normed: torch.Tensor
    delta: torch.Tensor
    qkv: torch.Tensor  # (R, q + 2 kv)
    query: torch.Tensor  # (R, heads, head dim), within qkv
    attended: torch.Tensor  # (R, heads, head dim)
    gate_up: torch.Tensor  # (R, 2 I)
    activated: torch.Tensor  # (R, I)
    padded_normed: torch.Tensor
    padded_delta: torch.Tensor
    padded_qkv: torch.Tensor
    padded_attended: torch.Tensor  # (max(R, 16), q)
    padded_gate_up: torch.Tensor
    padded_activated: torch.Tensor


class Workspace:
    """Buffers for batches of up to `size` rows, made once and used by every layer; spare rows stay finite."""

    def __init__(self, weights: DecoderWeights, size: int):
        layer, dtype = weights.layers[0], weights.embedding.dtype
        hidden, inter = layer.down.shape
        self.heads = (weights.num_heads, weights.head_dim)
        self.residual = torch.zeros(size, hidden, dtype=dtype)
        self.normed = torch.zeros(size, hidden, dtype=dtype)
        self.delta = torch.zeros(size, hidden, dtype=dtype)
        self.qkv = torch.zeros(size, len(layer.qkv), dtype=dtype)
        self.attended = torch.zeros(size, layer.out.shape[1], dtype=dtype)
        self.gate_up = torch.zeros(size, 2 * inter, dtype=dtype)
        self.activated = torch.zeros(size, inter, dtype=dtype)
        self._views: dict[int, Views] = {}  # slicing costs as much as a small kernel

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
            query=self.qkv[:rows, :q_out].unflatten(1, self.heads),
            attended=self.attended[:rows].unflatten(1, self.heads),
            gate_up=self.gate_up[:rows],
            activated=self.activated[:rows],
            padded_normed=self.normed[:padded],
            padded_delta=self.delta[:padded],
            padded_qkv=self.qkv[:padded],
            padded_attended=self.attended[:padded],
            padded_gate_up=self.gate_up[:padded],
            padded_activated=self.activated[:padded],
        )


class TorchDecoder:
    """Implements `forward` as `PackedDecoder` does, but for the padding of its result."""

    def __init__(self, weights: DecoderWeights):
        self.weights = weights
        self._workspaces: dict[int, Workspace] = {}

    def forward(
        self,
        token_ids: torch.Tensor,  # (R,) int
        plan,  # of ttc_kernels._native.KVTree
        positions: torch.Tensor,  # (R,) int32
        slots: torch.Tensor,  # (R,) int32, -1 stores nothing
        k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim)
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states after the final norm, (max(R, 16), H); rows past R are padding.

        The result lives in a buffer that the next call overwrites.
        """
        weights = self.weights
        work = self._views(token_ids.shape[0])
        scale, eps = weights.head_dim**-0.5, weights.rms_eps
        num_heads = weights.num_heads, weights.num_kv_heads
        caches = zip(k_cache.unbind(), v_cache.unbind(), strict=True)
        torch.index_select(weights.embedding, 0, token_ids, out=work.residual)
        rms_norm(work.residual, weights.layers[0].input_norm, eps, out=work.normed)
        for i, (layer, (k, v)) in enumerate(zip(weights.layers, caches, strict=True)):
            padded_mm(work.padded_normed, layer.qkv, work.padded_qkv)
            rope_store_kv(work.qkv, weights.cos, weights.sin, positions, slots, k, v, *num_heads)
            tree_attention(work.query, k, v, plan, scale, out=work.attended)
            padded_mm(work.padded_attended, layer.out, work.padded_delta)
            rms_norm(work.delta, layer.post_norm, eps, residual=work.residual, out=work.normed)
            padded_mm(work.padded_normed, layer.gate_up, work.padded_gate_up)
            swiglu(work.gate_up, out=work.activated)
            padded_mm(work.padded_activated, layer.down, work.padded_delta)
            is_last = i + 1 == len(weights.layers)
            norm = weights.final_norm if is_last else weights.layers[i + 1].input_norm
            rms_norm(work.delta, norm, eps, residual=work.residual, out=work.normed)
        return work.padded_normed

    def _views(self, rows: int) -> Views:
        """Buffers with `rows` rows, cut from ones of the next power of two."""
        size = 1 << (max(rows, MIN_ROWS) - 1).bit_length()
        if size not in self._workspaces:
            self._workspaces[size] = Workspace(self.weights, size)
        return self._workspaces[size].views(rows)
