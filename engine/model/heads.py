"""Heads on a decoder's hidden states: the LM head and scalar or two-label scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.model.config import ModelConfig
from engine.model.loader import read_tensors, take
from engine.model.transformer import MAX_PACKED_WEIGHTS
from engine.model.unpacked import linear
from ttc_kernels.decoder import PackedLinear


@dataclass(frozen=True)
class ScoreHead:
    """A linear score per step: sigmoid of one label, or softmax probability of the good label."""

    weight: torch.Tensor  # (labels, H)
    bias: torch.Tensor | None  # (labels,)
    good_index: int


class LMHead:
    """Logits in float32 of chosen rows. As for the trunk, the model's size alone says who computes them."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: dict[str, torch.Tensor],
        max_packed_weights: int = MAX_PACKED_WEIGHTS,
    ):
        name = "model.embed_tokens.weight" if config.is_tied else "lm_head.weight"
        self.weight = take(tensors, name, (config.vocab_size, config.hidden_size))
        self._packed = PackedLinear(self.weight) if self.weight.numel() <= max_packed_weights else None

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(len(rows), vocabulary) float32 of `hidden[rows]`; `rows` is int64."""
        if self._packed is not None:
            return self._packed.forward(hidden, rows)
        return linear(hidden, self.weight, rows)


def classification_head(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> ScoreHead:
    """The `score` layer of a `*ForTokenClassification` checkpoint; the last label is the good one."""
    if config.num_labels not in (1, 2):
        raise ValueError(f"a step verifier has 1 or 2 labels, the checkpoint has {config.num_labels}")
    weight = take(tensors, "score.weight", (config.num_labels, config.hidden_size))
    bias = take(tensors, "score.bias", (config.num_labels,)) if "score.bias" in tensors else None
    return ScoreHead(weight, bias, good_index=config.num_labels - 1)


def load_trunk_head(folder: Path, config: ModelConfig, dtype: torch.dtype) -> ScoreHead:
    """A head trained on the frozen trunk of a policy: a folder with `score.weight` (1, H) and `score.bias`."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"no trunk head at {folder}: model.safetensors is missing")
    tensors = read_tensors(path, dtype)
    weight = take(tensors, "score.weight", (1, config.hidden_size))
    return ScoreHead(weight, take(tensors, "score.bias", (1,)), good_index=0)
