"""Inputs for the decoder's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttc_kernels import kv_cache
from ttc_kernels.decoder.weights import DecoderWeights, LayerWeights
from ttc_kernels.tree_attention.cases import Case as AttentionCase

VOCABULARY, CONTEXT = 25, 512


@dataclass(frozen=True)
class Case:
    """A model, and a tree of branches as in tree_attention's cases."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    levels: tuple[tuple[int, int], ...]
    num_queries: int = 1
    spread: int = 0

    @property
    def attention(self) -> AttentionCase:
        shape = (self.num_heads, self.num_kv_heads, self.head_dim)
        return AttentionCase(*shape, self.dtype, self.levels, self.num_queries, spread=self.spread)

    @property
    def layer_weights(self) -> int:
        """Elements of one layer's matrices."""
        q_out, kv_out = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden * (2 * q_out + 2 * kv_out + 3 * self.intermediate)

    def flops(self, seed: int = 0) -> int:
        """Products with weights, and attention."""
        num_rows = len(self.attention.plan(seed)[0].positions)
        return self.num_layers * (2 * num_rows * self.layer_weights + self.attention.flops(seed))

    def num_bytes(self, seed: int = 0) -> int:
        """The weights and the attention's reads and writes, once."""
        return self.num_layers * (self.layer_weights * self.dtype.itemsize + self.attention.num_bytes(seed))

    def weights(self, seed: int = 0) -> DecoderWeights:
        """Random weights under which values keep their size."""
        generator = torch.Generator().manual_seed(seed)

        def matrix(num_out: int, num_in: int) -> torch.Tensor:
            return (torch.randn(num_out, num_in, generator=generator) * num_in**-0.5).to(self.dtype)

        def norm() -> torch.Tensor:
            return (1 + 0.1 * torch.randn(self.hidden, generator=generator)).to(self.dtype)

        q_out, kv_out = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        frequencies = 10000.0 ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.arange(CONTEXT)[:, None] * frequencies
        layers = [
            LayerWeights(
                input_norm=norm(),
                qkv=matrix(q_out + 2 * kv_out, self.hidden),
                out=matrix(self.hidden, q_out),
                post_norm=norm(),
                gate_up=matrix(2 * self.intermediate, self.hidden),
                down=matrix(self.hidden, self.intermediate),
            )
            for _ in range(self.num_layers)
        ]
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        embedding = torch.randn(VOCABULARY, self.hidden, generator=generator).to(self.dtype)
        return DecoderWeights(*heads, 1e-5, embedding, tuple(layers), norm(), angles.cos(), angles.sin())

    def inputs(self, seed: int = 0) -> dict:
        """Arguments of PackedDecoder.forward, with a cache full of earlier tokens."""
        generator = torch.Generator().manual_seed(seed + 1000)
        plan, num_blocks = self.attention.plan(seed)
        k, v = kv_cache.allocate(self.num_layers, num_blocks, self.num_kv_heads, 16, self.head_dim, self.dtype)
        k.copy_(torch.randn(k.shape, generator=generator))
        v.copy_(torch.randn(v.shape, generator=generator))
        return {
            "token_ids": torch.randint(VOCABULARY, (len(plan.positions),), generator=generator).int(),
            "plan": plan,
            "positions": torch.from_numpy(plan.positions),
            "slots": torch.from_numpy(plan.slots),
            "k_cache": k,
            "v_cache": v,
        }


def tiny() -> list[Case]:
    """Sizes that fill no panel, an odd hidden size, one row, few rows, many rows of one branch."""
    models = [(1, 96, 256, 6, 2, 16), (2, 33, 41, 3, 1, 24), (2, 48, 70, 2, 2, 2), (1, 130, 100, 4, 1, 80)]
    trees = [(((1, 1),), 1, 0), (((1, 37), (3, 5)), 1, 0), (((1, 20), (9, 12)), 5, 4), (((1, 40),), 29, 0)]
    return [
        Case(*model, dtype, *tree) for model in models for dtype in (torch.float32, torch.bfloat16) for tree in trees
    ]


def full() -> list[Case]:
    """The home model at decode: one branch, a beam search, best-of-256."""
    home = (6, 96, 256, 6, 2, 16)
    trees = [((1, 60),), ((1, 60), (16, 30)), ((1, 40), (64, 50)), ((1, 40), (256, 50))]
    return [Case(*home, dtype, tree) for dtype in (torch.float32, torch.bfloat16) for tree in trees]
