"""A decoder over the ops of `ttc_kernels`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.model.config import ModelConfig
from engine.model.placement import CPU, Placement
from engine.model.unpacked import TorchDecoder
from engine.model.weights import is_plain, read_trunk
from ttc_kernels.decoder import PackedDecoder

# Up to so many matrix weights a trunk of Llama's shape is packed. A bound on what the caches of the cores hold
# together, not a measured crossover: every thread reads all packed weights for its own rows.
MAX_PACKED_WEIGHTS = 16_000_000
# Branches of one forward. 128 was the fastest for the home policy in float32 on 2 cores, by less than two runs of one
# size differ (benchmarks/results/engine.json has the figures of the default).
LARGE_BATCH, SMALL_BATCH = 256, 128


class Decoder:
    """The trunk of a model: tokens in, normed hidden states out; KV is written as it goes.

    Which implementation runs depends on the model and its placement alone, never on the batch: their bits differ.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        max_packed_weights: int = MAX_PACKED_WEIGHTS,
        placement: Placement = CPU,
    ):
        self.config, self.placement = config, placement
        shape = config.shape()
        num_weights = shape.num_matmul_params - shape.num_head_params
        self.is_packed = placement.is_native and is_plain(config) and num_weights <= max_packed_weights
        trunk = read_trunk(config, tensors, is_streamed=self.is_packed)
        self.embedding, self.dtype = trunk.weights.embedding, trunk.weights.embedding.dtype
        self.packed = PackedDecoder(trunk.weights) if self.is_packed else None
        self._trunk = self.packed or TorchDecoder(trunk, placement.impl)

    @property
    def best_batch(self) -> int:
        """Branches of one forward that give the most tokens a second.

        Where the weights stay in the cache, fewer branches: what a forward reads is then their KV, and some of it
        stays there too. Where the weights come from memory, many branches share one reading of them.
        """
        return SMALL_BATCH if self.is_packed else LARGE_BATCH

    def forward(
        self,
        token_ids: torch.Tensor,  # (R,) int
        plan,  # of ttc_kernels._native.KVTree, or what tree_attention takes in its place
        positions: torch.Tensor,  # (R,) int32
        slots: torch.Tensor,  # (R,) int32, -1 stores nothing
        k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim)
        v_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states after the final norm, (R, H), or more rows, of which those past R are padding.

        The result lives in a buffer that the next call may overwrite.
        """
        return self._trunk.forward(token_ids.int(), plan, positions, slots, k_cache, v_cache)
