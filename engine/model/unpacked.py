"""The trunk on torch's matrix products: for models too large to be packed, or with parts that Llama lacks.

Shapes: R rows (tokens of all branches of a batch), H hidden, I intermediate.
"""

from __future__ import annotations

import torch

from engine.model.products import TorchProducts, products_of
from engine.model.ranks import ALONE, Ranks
from engine.model.weights import LayerExtras, Trunk
from engine.model.window import Part, clip
from engine.model.workspace import MIN_ROWS, Views, Workspace
from ttc_kernels.rms_norm import rms_norm
from ttc_kernels.rope_store_kv import rope_store_kv
from ttc_kernels.tree_attention import tree_attention


class TorchDecoder:
    """Computes what `PackedDecoder` does, but pads its result. Every op is called with `impl`.

    A model with sliding windows needs a plan on the host; others take any that tree_attention accepts. Of several
    ranks each has some of the heads and of the intermediate values: what it adds to the residual is summed over them.
    `products` says who computes the matrix products, as in `Placement`.
    """

    def __init__(self, trunk: Trunk, impl: str = "auto", ranks: Ranks = ALONE, products: str = "auto"):
        self.weights, self.extras, self.impl, self.ranks = trunk.weights, trunk.extras, impl, ranks
        self.products = products
        self._head_ones = trunk.weights.embedding.new_ones(trunk.weights.head_dim)
        self._workspaces: dict[int, Workspace] = {}
        self._products: dict[int, TorchProducts] = {}  # by rows

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
        weights, products = self.weights, self._products_of(token_ids.shape[0])
        work = products.work
        caches = zip(k_cache.unbind(), v_cache.unbind(), strict=True)
        windows = {extras.window for extras in self.extras} - {None}
        parts = {window: clip(plan, window, k_cache.shape[3], k_cache.shape[1], k_cache.device) for window in windows}
        products.start(weights.embedding, token_ids)
        for layer, extras, (k, v) in zip(weights.layers, self.extras, caches, strict=True):
            products.qkv(layer)
            bias = self._norm_heads(work, extras)
            rope_store_kv(work.qkv, weights.cos, weights.sin, positions, slots, k, v, bias, impl=self.impl)
            self._attend(work, k, v, plan, parts.get(extras.window))
            products.out(layer)
            products.mlp(layer)
        products.norm(weights.final_norm)
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

    def _products_of(self, rows: int) -> TorchProducts:
        """The products of a forward, and its buffers: `rows` rows of those of the next power of two."""
        if rows not in self._products:
            size = 1 << (max(rows, MIN_ROWS) - 1).bit_length()
            if size not in self._workspaces:
                has_qk_norm = any(extras.q_norm is not None for extras in self.extras)
                self._workspaces[size] = Workspace(self.weights, size, has_qk_norm)
            options = self.weights.rms_eps, self.impl, self.ranks, self.products
            self._products[rows] = products_of(self._workspaces[size], rows, *options)
        return self._products[rows]
