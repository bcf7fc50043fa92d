"""A Llama-family decoder over the ops of `ttc_kernels`."""

from __future__ import annotations

import torch

from engine.model.config import ModelConfig
from engine.model.loader import take
from engine.model.unpacked import TorchDecoder
from ttc_kernels.decoder import DecoderWeights, LayerWeights, PackedDecoder

# Up to so many matrix weights the trunk is packed. A bound on what the caches of the cores hold together, not a
# measured crossover: every thread reads all packed weights for its own rows.
MAX_PACKED_WEIGHTS = 16_000_000
# Branches of one forward: best-of-256 of the home policy, one pool of 36 MiB in float32, ran at 88k tokens a second
# in batches of 64, at 77k in 128 and 72k in 256 (AMD EPYC, 2 cores, commit 3e315dab03f7); bfloat16 was best at 128.
LARGE_BATCH, SMALL_BATCH_BYTES = 256, 256


class Decoder:
    """The trunk of a model: tokens in, normed hidden states out; KV is written as it goes.

    Which implementation runs depends on the model alone, never on the batch: their bits differ.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: dict[str, torch.Tensor],
        max_packed_weights: int = MAX_PACKED_WEIGHTS,
    ):
        self.config = config
        weights = read_weights(config, tensors)
        self.embedding, self.dtype = weights.embedding, weights.embedding.dtype
        self.is_packed = _num_matrix_weights(weights) <= max_packed_weights
        self.packed = PackedDecoder(weights) if self.is_packed else None
        self._trunk = self.packed or TorchDecoder(weights)

    @property
    def best_batch(self) -> int:
        """Branches of one forward that give the most tokens a second.

        Where the weights stay in the cache, few branches: what a forward reads is then their KV, and less of it
        stays there too. Where the weights come from memory, many branches share one reading of them.
        """
        if not self.is_packed:
            return LARGE_BATCH
        return SMALL_BATCH_BYTES // self.dtype.itemsize

    def forward(
        self,
        token_ids: torch.Tensor,  # (R,) int
        plan,  # of ttc_kernels._native.KVTree
        positions: torch.Tensor,  # (R,) int32
        slots: torch.Tensor,  # (R,) int32, -1 stores nothing
        k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim)
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states after the final norm, (R, H), or more rows, of which those past R are padding.

        The result lives in a buffer that the next call may overwrite.
        """
        return self._trunk.forward(token_ids.int(), plan, positions, slots, k_cache, v_cache)


def read_weights(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> DecoderWeights:
    """The trunk of a checkpoint. Raises ValueError for a tensor that is missing or of another shape."""
    hidden, inter = config.hidden_size, config.intermediate_size
    q_out, kv_out = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def layer(i: int) -> LayerWeights:
        def get(name: str, *shape: int) -> torch.Tensor:
            return take(tensors, f"model.layers.{i}.{name}.weight", shape)

        return LayerWeights(
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

    cos, sin = rope_tables(config)
    return DecoderWeights(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_eps=config.rms_eps,
        embedding=take(tensors, "model.embed_tokens.weight", (config.vocab_size, hidden)),
        layers=tuple(layer(i) for i in range(config.num_layers)),
        final_norm=take(tensors, "model.norm.weight", (hidden,)),
        cos=cos,
        sin=sin,
    )


def _num_matrix_weights(weights: DecoderWeights) -> int:
    return sum(tensor.numel() for layer in weights.layers for tensor in vars(layer).values() if tensor.dim() == 2)


def rope_tables(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 (context, head_dim / 2), as transformers computes them."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponents)
    angles = torch.outer(torch.arange(config.context).float(), inverse)
    return angles.cos(), angles.sin()
