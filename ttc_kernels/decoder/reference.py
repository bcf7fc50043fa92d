"""The definition of the decoder: the references of the ops it is made of, one after another."""

from __future__ import annotations

import torch

from ttc_kernels.decoder.weights import DecoderWeights
from ttc_kernels.rms_norm.reference import rms_norm
from ttc_kernels.rope_store_kv.reference import rope_store_kv
from ttc_kernels.swiglu.reference import swiglu
from ttc_kernels.tree_attention.reference import tree_attention


def decoder(
    weights: DecoderWeights,
    token_ids: torch.Tensor,  # (rows)
    plan,  # KVTree.plan(...), or any object with its `items` and `blocks`
    positions: torch.Tensor,  # (rows)
    slots: torch.Tensor,  # (rows), -1 stores nothing
    k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim)
    v_cache: torch.Tensor,  # the same
    out: torch.Tensor | None = None,  # (rows, H)
) -> torch.Tensor:
    heads, dim, eps = weights.num_heads, weights.head_dim, weights.rms_eps
    residual = weights.embedding[token_ids]
    for layer, k, v in zip(weights.layers, k_cache, v_cache, strict=True):
        qkv = rms_norm(residual, layer.input_norm, eps) @ layer.qkv.T
        rope_store_kv(qkv, weights.cos, weights.sin, positions, slots, k, v)
        query = qkv[:, : heads * dim].unflatten(1, (heads, dim))
        attended = tree_attention(query, k, v, plan, dim**-0.5).flatten(1)
        residual = residual + attended @ layer.out.T
        gate_up = rms_norm(residual, layer.post_norm, eps) @ layer.gate_up.T
        residual = residual + swiglu(gate_up) @ layer.down.T
    return rms_norm(residual, weights.final_norm, eps, out=out)


def linear(x: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """x (R, num_in), weight (num_out, num_in) -> float32, or float64 of float64: x[rows] @ weight.T."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x if rows is None else x[rows]).to(wide) @ weight.to(wide).T
