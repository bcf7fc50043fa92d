"""The trunk of a decoder, on the ops of `ttc_kernels`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.model.config import ModelConfig
from engine.model.placement import CPU, Placement
from engine.model.tensor_files import origin
from engine.model.unpacked import TorchDecoder
from engine.model.weights import is_plain, read_trunk
from ttc_kernels.decoder import PackedDecoder

# A trunk of Llama's shape with at most this many matrix weights is packed. The bound is what the cores' caches hold
# together, not a measured crossover: every thread reads all packed weights for its own rows.
MAX_PACKED_WEIGHTS = 16_000_000
# Branches per forward. 128 was the fastest for the home policy in float32 on 2 cores, by less than the noise between
# runs (benchmarks/results/engine.json has the figures of the default).
LARGE_BATCH, SMALL_BATCH = 256, 128


class Decoder:
    """The trunk of a model: turns tokens into normed hidden states and writes their KV to the caches.

    The implementation depends on the model and its placement alone, never on the batch, because the results of
    two implementations differ in their last bits. On a GPU, where they do so from batch to batch in torch's products
    too, forwards of few rows have other products than larger ones (`engine/model/products.py`).
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
        self.part = placement.ranks.part(config, origin(tensors))  # what this rank computes and holds the KV of
        trunk = read_trunk(config, tensors, self.is_packed, placement.ranks)
        self.embedding, self.dtype = trunk.weights.embedding, trunk.weights.embedding.dtype
        self.packed = PackedDecoder(trunk.weights) if self.is_packed else None
        self._trunk = self.packed or TorchDecoder(trunk, placement.impl, placement.ranks, placement.products)

    @property
    def best_batch(self) -> int:
        """Branches per forward that give the highest throughput.

        The weights of a packed trunk stay in the CPU's cache, and with fewer branches part of their KV does too.
        Weights that come from memory are better read once for many branches.
        """
        return SMALL_BATCH if self.is_packed else LARGE_BATCH

    def forward(
        self,
        token_ids: torch.Tensor,  # (R,) int
        plan,  # of ttc_kernels._native.KVTree, or another that tree_attention accepts
        positions: torch.Tensor,  # (R,) int32
        slots: torch.Tensor,  # (R,) int32, -1 stores nothing
        k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim)
        v_cache: torch.Tensor,  # as k_cache
    ) -> torch.Tensor:
        """Hidden states after the final norm, (R or more, H); rows past R are padding.

        The next call may overwrite the result.
        """
        return self._trunk.forward(token_ids.int(), plan, positions, slots, k_cache, v_cache)
