"""A Llama-family decoder over the ops of `ttc_kernels`.

Shapes: R rows (tokens of all branches of a batch), H hidden, I intermediate, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.model.config import ModelConfig
from engine.model.loader import take
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


@dataclass(frozen=True)
class Layer:
    """The weights of one block; projections that read the same input are fused."""

    input_norm: torch.Tensor  # (H,)
    qkv: torch.Tensor  # (q + 2 kv, H)
    out: torch.Tensor  # (H, q)
    post_norm: torch.Tensor  # (H,)
    gate_up: torch.Tensor  # (2 I, H)
    down: torch.Tensor  # (H, I)


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

    def __init__(self, config: ModelConfig, size: int, dtype: torch.dtype):
        q_out, kv_out = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.config = config
        self.residual = torch.zeros(size, config.hidden_size, dtype=dtype)
        self.normed = torch.zeros(size, config.hidden_size, dtype=dtype)
        self.delta = torch.zeros(size, config.hidden_size, dtype=dtype)
        self.qkv = torch.zeros(size, q_out + 2 * kv_out, dtype=dtype)
        self.attended = torch.zeros(size, q_out, dtype=dtype)
        self.gate_up = torch.zeros(size, 2 * config.intermediate_size, dtype=dtype)
        self.activated = torch.zeros(size, config.intermediate_size, dtype=dtype)
        self._views: dict[int, Views] = {}  # slicing costs as much as a small kernel

    def views(self, rows: int) -> Views:
        """The buffers cut to `rows` rows."""
        if rows not in self._views:
            self._views[rows] = self._cut(rows)
        return self._views[rows]

    def _cut(self, rows: int) -> Views:
        heads = (self.config.num_heads, self.config.head_dim)
        q_out, padded = heads[0] * heads[1], max(rows, MIN_ROWS)
        return Views(
            residual=self.residual[:rows],
            normed=self.normed[:rows],
            delta=self.delta[:rows],
            qkv=self.qkv[:rows],
            query=self.qkv[:rows, :q_out].unflatten(1, heads),
            attended=self.attended[:rows].unflatten(1, heads),
            gate_up=self.gate_up[:rows],
            activated=self.activated[:rows],
            padded_normed=self.normed[:padded],
            padded_delta=self.delta[:padded],
            padded_qkv=self.qkv[:padded],
            padded_attended=self.attended[:padded],
            padded_gate_up=self.gate_up[:padded],
            padded_activated=self.activated[:padded],
        )


class Decoder:
    """The trunk of a model: tokens in, normed hidden states out; KV is written as it goes."""

    def __init__(self, config: ModelConfig, tensors: dict[str, torch.Tensor]):
        self.config = config
        hidden, inter = config.hidden_size, config.intermediate_size
        q_out, kv_out = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.embedding = take(tensors, "model.embed_tokens.weight", (config.vocab_size, hidden))
        self.final_norm = take(tensors, "model.norm.weight", (hidden,))
        self.dtype = self.embedding.dtype
        self.layers = []
        for i in range(config.num_layers):

            def get(name: str, *shape: int, prefix: str = f"model.layers.{i}.") -> torch.Tensor:
                return take(tensors, f"{prefix}{name}.weight", shape)

            self.layers.append(
                Layer(
                    input_norm=get("input_layernorm", hidden),
                    qkv=torch.cat(
                        [
                            get("self_attn.q_proj", q_out, hidden),
                            get("self_attn.k_proj", kv_out, hidden),
                            get("self_attn.v_proj", kv_out, hidden),
                        ]
                    ),
                    out=get("self_attn.o_proj", hidden, q_out),
                    post_norm=get("post_attention_layernorm", hidden),
                    gate_up=torch.cat([get("mlp.gate_proj", inter, hidden), get("mlp.up_proj", inter, hidden)]),
                    down=get("mlp.down_proj", hidden, inter),
                )
            )
        self.cos, self.sin = rope_tables(config)
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
        config = self.config
        work = self._views(token_ids.shape[0])
        scale = config.head_dim**-0.5
        caches = zip(k_cache.unbind(), v_cache.unbind(), strict=True)
        torch.index_select(self.embedding, 0, token_ids, out=work.residual)
        rms_norm(work.residual, self.layers[0].input_norm, config.rms_eps, out=work.normed)
        for i, (layer, (k, v)) in enumerate(zip(self.layers, caches, strict=True)):
            padded_mm(work.padded_normed, layer.qkv, work.padded_qkv)
            rope_store_kv(work.qkv, self.cos, self.sin, positions, slots, k, v, config.num_heads, config.num_kv_heads)
            tree_attention(work.query, k, v, plan, scale, out=work.attended)
            padded_mm(work.padded_attended, layer.out, work.padded_delta)
            rms_norm(work.delta, layer.post_norm, config.rms_eps, residual=work.residual, out=work.normed)
            padded_mm(work.padded_normed, layer.gate_up, work.padded_gate_up)
            swiglu(work.gate_up, out=work.activated)
            padded_mm(work.padded_activated, layer.down, work.padded_delta)
            is_last = i + 1 == len(self.layers)
            norm = self.final_norm if is_last else self.layers[i + 1].input_norm
            rms_norm(work.delta, norm, config.rms_eps, residual=work.residual, out=work.normed)
        return work.padded_normed

    def _views(self, rows: int) -> Views:
        """Buffers with `rows` rows, cut from ones of the next power of two."""
        size = 1 << (max(rows, MIN_ROWS) - 1).bit_length()
        if size not in self._workspaces:
            self._workspaces[size] = Workspace(self.config, size, self.dtype)
        return self._workspaces[size].views(rows)


def rope_tables(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 (context, head_dim / 2), as transformers computes them."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponents)
    angles = torch.outer(torch.arange(config.context).float(), inverse)
    return angles.cos(), angles.sin()
