"""The trunk on torch's matrix products: for models too large to be packed, or with parts that Llama lacks.

Shapes: R rows (tokens of all branches of a batch), H hidden, I intermediate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.model.ranks import ALONE, Ranks
from engine.model.weights import LayerExtras, Trunk
from engine.model.window import Part, clip
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
    """x[rows] @ weight.T as float32 (len(rows), num_out); the product is padded to 16 rows."""
    num = rows.shape[0]
    padded = max(num, MIN_ROWS)
    picked = x.new_zeros(padded, x.shape[1])
    torch.index_select(x, 0, rows, out=picked[:num])
    out = x.new_empty(padded, weight.shape[0])
    padded_mm(picked, weight, out)
    return out[:num].float()


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
    """Computes what `PackedDecoder` does, but pads its result. Every op is called with `impl`.

    A model with sliding windows needs a plan on the host; others take any that tree_attention accepts. Of several
    ranks each has some of the heads and of the intermediate values: what it adds to the residual is summed over them.
    """

    def __init__(self, trunk: Trunk, impl: str = "auto", ranks: Ranks = ALONE):
        self.weights, self.extras, self.impl, self.ranks = trunk.weights, trunk.extras, impl, ranks
        self._head_ones = trunk.weights.embedding.new_ones(trunk.weights.head_dim)
        self._workspaces: dict[int, Workspace] = {}

    def forward(
        self,
        token_ids: torch.Tensor,  # (R,) int
        plan,  # of ttc_kernels._native.KVTree
        positions: torch.Tensor,  # (R,) int32
        slots: torch.Tensor,  # (R,) int32, -1 stores nothing
        k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim)
        v_cache: torch.Tensor,  # as k_cache
    ) -> torch.Tensor:
        """Hidden states after the final norm, (max(R, 16), H); rows past R are padding.

        The next call overwrites the result.
        """
        weights, eps, impl = self.weights, self.weights.rms_eps, self.impl
        work = self._views(token_ids.shape[0])
        caches = zip(k_cache.unbind(), v_cache.unbind(), strict=True)
        windows = {extras.window for extras in self.extras} - {None}
        parts = {window: clip(plan, window, k_cache.shape[3], k_cache.shape[1], k_cache.device) for window in windows}
        torch.index_select(weights.embedding, 0, token_ids, out=work.residual)
        rms_norm(work.residual, weights.layers[0].input_norm, eps, out=work.normed, impl=impl)
        for i, (layer, extras, (k, v)) in enumerate(zip(weights.layers, self.extras, caches, strict=True)):
            padded_mm(work.padded_normed, layer.qkv, work.padded_qkv)
            bias = self._norm_heads(work, extras)
            rope_store_kv(work.qkv, weights.cos, weights.sin, positions, slots, k, v, bias, impl=impl)
            self._attend(work, k, v, plan, parts.get(extras.window))
            padded_mm(work.padded_attended, layer.out, work.padded_delta)
            self.ranks.add(work.padded_delta)
            rms_norm(work.delta, layer.post_norm, eps, residual=work.residual, out=work.normed, impl=impl)
            padded_mm(work.padded_normed, layer.gate_up, work.padded_gate_up)
            swiglu(work.gate_up, out=work.activated, impl=impl)
            padded_mm(work.padded_activated, layer.down, work.padded_delta)
            self.ranks.add(work.padded_delta)
            is_last = i + 1 == len(weights.layers)
            norm = weights.final_norm if is_last else weights.layers[i + 1].input_norm
            rms_norm(work.delta, norm, eps, residual=work.residual, out=work.normed, impl=impl)
        return work.padded_normed

    def _norm_heads(self, work: Views, extras: LayerExtras) -> torch.Tensor | None:
        """Norms every query and key head of `work.qkv` where the layer does; returns the bias still to be added."""
        if extras.q_norm is None:
            return extras.qkv_bias
        if extras.qkv_bias is not None:
            work.qkv.add_(extras.qkv_bias)
        # One call norms all heads; the value heads' results are not used. Weights multiply after the rounding.
        flat, normed = work.heads.flatten(0, 1), work.normed_heads
        rms_norm(flat, self._head_ones, self.weights.rms_eps, out=normed.flatten(0, 1), impl=self.impl)
        first, last = self.weights.num_heads, self.weights.num_heads + self.weights.num_kv_heads
        torch.mul(normed[:, :first], extras.q_norm, out=work.heads[:, :first])
        torch.mul(normed[:, first:last], extras.k_norm, out=work.heads[:, first:last])
        return None

    def _attend(self, work: Views, k: torch.Tensor, v: torch.Tensor, plan, parts: list[Part] | None) -> None:
        """Attention of one layer; `parts` is the plan under the layer's sliding window, None without one."""
        scale = self.weights.head_dim**-0.5
        if parts is None:
            tree_attention(work.query, k, v, plan, scale, out=work.attended, impl=self.impl)
            return
        for part in parts:
            rows = slice(part.row_lo, part.row_hi)
            part.copy_edges(k, v)
            tree_attention(work.query[rows], k, v, part, scale, out=work.attended[rows], impl=self.impl)

    def _views(self, rows: int) -> Views:
        """Buffers of `rows` rows, cut from those of the next power of two."""
        size = 1 << (max(rows, MIN_ROWS) - 1).bit_length()
        if size not in self._workspaces:
            has_qk_norm = any(extras.q_norm is not None for extras in self.extras)
            self._workspaces[size] = Workspace(self.weights, size, has_qk_norm)
        return self._workspaces[size].views(rows)
