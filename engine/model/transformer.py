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


class Workspace:
    """Buffers of one batch size, made once and used by every layer; spare rows stay finite."""

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype):
        q_out, kv_out = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.rows = rows
        self.residual = torch.zeros(rows, config.hidden_size, dtype=dtype)
        self.normed = torch.zeros(rows, config.hidden_size, dtype=dtype)
        self.delta = torch.zeros(rows, config.hidden_size, dtype=dtype)
        self.qkv = torch.zeros(rows, q_out + 2 * kv_out, dtype=dtype)
        self.attended = torch.zeros(rows, config.num_heads, config.head_dim, dtype=dtype)
        self.gate_up = torch.zeros(rows, 2 * config.intermediate_size, dtype=dtype)
        self.activated = torch.zeros(rows, config.intermediate_size, dtype=dtype)


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
                    gate_up=torch.cat(
                        [get("mlp.gate_proj", inter, hidden), get("mlp.up_proj", inter, hidden)]
                    ),
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
        rows, config = token_ids.shape[0], self.config
        work = self._workspace(max(rows, MIN_ROWS))
        qkv, attended, residual, delta, normed = (
            buffer[:rows] for buffer in (work.qkv, work.attended, work.residual, work.delta, work.normed)
        )
        gate_up, activated = work.gate_up[:rows], work.activated[:rows]
        query = qkv[:, : config.num_heads * config.head_dim].unflatten(1, (config.num_heads, config.head_dim))
        attended_2d = work.attended.flatten(1)
        scale = config.head_dim**-0.5
        torch.index_select(self.embedding, 0, token_ids, out=residual)
        rms_norm(residual, self.layers[0].input_norm, config.rms_eps, out=normed)
        for i, layer in enumerate(self.layers):
            padded_mm(work.normed, layer.qkv, work.qkv)
            rope_store_kv(
                qkv,
                self.cos,
                self.sin,
                positions,
                slots,
                k_cache[i],
                v_cache[i],
                config.num_heads,
                config.num_kv_heads,
            )
            tree_attention(query, k_cache[i], v_cache[i], plan, scale, out=attended)
            padded_mm(attended_2d, layer.out, work.delta)
            rms_norm(delta, layer.post_norm, config.rms_eps, residual=residual, out=normed)
            padded_mm(work.normed, layer.gate_up, work.gate_up)
            swiglu(gate_up, out=activated)
            padded_mm(work.activated, layer.down, work.delta)
            is_last = i + 1 == len(self.layers)
            norm = self.final_norm if is_last else self.layers[i + 1].input_norm
            rms_norm(delta, norm, config.rms_eps, residual=residual, out=normed)
        return work.normed

    def _workspace(self, rows: int) -> Workspace:
        """Buffers with exactly `rows` rows, cut from one that is large enough."""
        size = 1 << (rows - 1).bit_length()
        if size not in self._workspaces:
            self._workspaces[size] = Workspace(self.config, size, self.dtype)
        full = self._workspaces[size]
        view = Workspace.__new__(Workspace)
        view.rows = rows
        for name, buffer in vars(full).items():
            if name != "rows":
                setattr(view, name, buffer[:rows])
        return view


def rope_tables(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 (context, head_dim / 2), as transformers computes them."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponents)
    angles = torch.outer(torch.arange(config.context).float(), inverse)
    return angles.cos(), angles.sin()
