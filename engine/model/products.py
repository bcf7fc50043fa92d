"""The matrix products of a layer, with what comes between them: norms, the activation, the sums with the residual.

`TorchProducts` are torch's, between launches of rms_norm and swiglu. `FusedProducts` are launches of fused_linear, made
for the few rows of a decode step: with bias, rotation and store in one launch, and attention, six a layer, not nine.
"""

from __future__ import annotations

import torch

from engine.model.ranks import Ranks
from engine.model.workspace import MIN_ROWS, Views, Workspace
from ttc_kernels.choice import PRODUCTS, chooser
from ttc_kernels.decoder import LayerWeights
from ttc_kernels.fused_linear import Scratch, fused_linear
from ttc_kernels.rms_norm import rms_norm
from ttc_kernels.swiglu import swiglu

_choose = chooser("products", PRODUCTS)


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


class TorchProducts:
    """What a product adds to the residual is added by the norm that comes next.

    Of several ranks each has a part of it, which is summed over them.
    """

    def __init__(self, work: Views, eps: float, impl: str, ranks: Ranks):
        self.work, self.eps, self.impl, self.ranks = work, eps, impl, ranks
        self._is_summed = True  # whether the residual has everything

    def start(self, embedding: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Begins a forward: the residual is the tokens' embeddings."""
        torch.index_select(embedding, 0, token_ids, out=self.work.residual)
        self._is_summed = True

    def qkv(self, layer: LayerWeights) -> None:
        """Fills `work.qkv` from the residual."""
        self.norm(layer.input_norm)
        padded_mm(self.work.padded_normed, layer.qkv, self.work.padded_qkv)

    def out(self, layer: LayerWeights) -> None:
        """Adds the product of `work.attended` to the residual."""
        self._add(self.work.padded_attended, layer.out)

    def mlp(self, layer: LayerWeights) -> None:
        """Adds the MLP of the residual to it."""
        work = self.work
        self.norm(layer.post_norm)
        padded_mm(work.padded_normed, layer.gate_up, work.padded_gate_up)
        swiglu(work.gate_up, out=work.activated, impl=self.impl)
        self._add(work.padded_activated, layer.down)

    def norm(self, weight: torch.Tensor) -> None:
        """Fills `work.normed` from the residual."""
        work = self.work
        x, residual = (work.residual, None) if self._is_summed else (work.delta, work.residual)
        rms_norm(x, weight, self.eps, residual=residual, out=work.normed, impl=self.impl)
        self._is_summed = True

    def _add(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        padded_mm(x, weight, self.work.padded_delta)
        self.ranks.add(self.work.padded_delta)
        self._is_summed = False


class FusedProducts(TorchProducts):
    """Products that norm what they read and add to the residual themselves; of one rank alone, without padding."""

    def __init__(self, work: Views, eps: float, impl: str, ranks: Ranks, scratch: Scratch):
        super().__init__(work, eps, impl, ranks)
        self.scratch = scratch

    def qkv(self, layer: LayerWeights) -> None:
        work = self.work
        self._fused(work.residual, layer.qkv, norm=layer.input_norm, out=work.qkv)

    def out(self, layer: LayerWeights) -> None:
        work = self.work
        self._fused(work.flat_attended, layer.out, residual=work.residual)

    def mlp(self, layer: LayerWeights) -> None:
        work = self.work
        self._fused(work.residual, layer.gate_up, norm=layer.post_norm, is_gated=True, out=work.activated)
        self._fused(work.activated, layer.down, residual=work.residual)

    def _fused(self, x: torch.Tensor, weight: torch.Tensor, **options) -> None:
        fused_linear(x, weight, eps=self.eps, scratch=self.scratch, impl=self.impl, **options)


def products_of(workspace: Workspace, rows: int, eps: float, impl: str, ranks: Ranks, products: str) -> TorchProducts:
    """Those of forwards of so many rows; `products` as in `Placement`. Ranks exchange what torch's products add."""
    work = workspace.views(rows)
    if products == "auto":
        products = _choose(impl, work.residual) if impl == "auto" else "fused_linear" if impl == "triton" else "torch"
    if products == "fused_linear" and ranks.size == 1:
        return FusedProducts(work, eps, impl, ranks, workspace.scratch)
    return TorchProducts(work, eps, impl, ranks)
