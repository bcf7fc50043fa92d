"""Heads on a decoder's hidden states: the LM head and scalar or two-label scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import UserError
from engine.model.config import ModelConfig
from engine.model.loader import read_tensors
from engine.model.placement import CPU, Placement
from engine.model.tensor_files import TensorFiles, runs, take
from engine.model.transformer import MAX_PACKED_WEIGHTS
from engine.model.unpacked import linear
from ttc_kernels.decoder import PackedLinear
from ttc_kernels.sample import sample_head
from ttc_kernels.step_score import LabelHead, step_score


@dataclass(frozen=True)
class ScoreHead:
    """A score per row: the sigmoid of one label, or the softmax probability of the good one of several.

    The rows go through `inner` and a ReLU first where there is one.
    """

    weight: torch.Tensor  # (labels, width)
    bias: torch.Tensor | None  # (labels,)
    good_index: int
    inner: tuple[torch.Tensor, torch.Tensor] | None = None  # weight (width, H) and bias (width,)

    @property
    def num_params(self) -> int:
        """Weights that multiply every scored row."""
        return self.weight.numel() + (0 if self.inner is None else self.inner[0].numel())

    def scores(self, hidden: torch.Tensor, where: Sequence[int]) -> list[float]:
        """The scores of the rows `where` of `hidden`, (R, H); what else is scored does not change their bits."""
        return self.score(hidden, torch.tensor(where, dtype=torch.int32)).tolist()

    def score(
        self, hidden: torch.Tensor, rows: torch.Tensor, impl: str = "auto", mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`scores` where the model is: (n,) float32 of rows (n,) int32; nothing waits for a GPU.

        NaN, and not computed, where `mask`, (n,) bool, is not set.
        """
        num, device = len(rows), hidden.device
        order = torch.arange(num, dtype=torch.int32, device=device)
        if self.inner is not None:
            weight, bias = self.inner
            hidden = (linear(hidden, weight, rows.long()) + bias).relu().to(weight.dtype)
            rows = order
        state = torch.zeros(num, 4, device=device)
        counts = torch.zeros(num, dtype=torch.int32, device=device)
        head = LabelHead(self.weight, self.bias, self.good_index)
        return step_score(hidden, rows, head, state, counts, order, mask, impl=impl)


class LMHead:
    """Logits in float32 of chosen rows. As for the trunk, the model's size alone says who computes them."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        max_packed_weights: int = MAX_PACKED_WEIGHTS,
        placement: Placement = CPU,
    ):
        self.placement = placement
        name, shape = _lm_head_name(config), (config.vocab_size, config.hidden_size)
        self.weight = self.packed = None  # one of them
        if placement.is_native and math.prod(shape) <= max_packed_weights:
            dtype = tensors.dtype if isinstance(tensors, TensorFiles) else tensors[name].dtype
            self.packed = PackedLinear.from_runs(runs(tensors, name, shape), dtype, *shape)
        else:
            self.weight = take(tensors, name, shape)

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(len(rows), vocabulary) float32 of `hidden[rows]`; `rows` is int64."""
        if self.packed is not None:
            return self.packed.forward(hidden, rows)
        return linear(hidden, self.weight, rows)

    def draw(
        self,
        hidden: torch.Tensor,
        sampling: Sequence[torch.Tensor],
        is_filtered: bool,
        marks: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """(tokens, logprobs) of every row of `hidden`, where the model is; `sampling` is `sample`'s, after the logits.

        `is_filtered`: whether a row has top-k, top-p or min-p. With `marks`, (vocabulary + 1,) bool, whether each
        token is one of those comes third.
        """
        options = {"is_filtered": is_filtered, "marks": marks, "impl": self.placement.impl}
        return sample_head(hidden, self.weight, sampling, **options)


def _lm_head_name(config: ModelConfig) -> str:
    return "model.embed_tokens.weight" if config.is_tied else "lm_head.weight"


def classification_head(config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> ScoreHead:
    """The `score` layer of a `*ForTokenClassification` checkpoint; the last label is the good one."""
    if config.num_labels not in (1, 2):
        raise UserError(f"a step verifier has 1 or 2 labels, the checkpoint has {config.num_labels}")
    return linear_head(config, tensors, "score", config.num_labels, config.num_labels - 1)


def linear_head(
    config: ModelConfig, tensors: Mapping[str, torch.Tensor], name: str, num_labels: int, good_index: int
) -> ScoreHead:
    """One linear layer, `{name}.weight` and perhaps `{name}.bias`."""
    weight = take(tensors, f"{name}.weight", (num_labels, config.hidden_size))
    bias = take(tensors, f"{name}.bias", (num_labels,)) if f"{name}.bias" in tensors else None
    return ScoreHead(weight, bias, good_index)


def mlp_head(
    config: ModelConfig, tensors: Mapping[str, torch.Tensor], name: str, num_labels: int, good_index: int
) -> ScoreHead:
    """Linear, ReLU, linear: `{name}.0` of the trunk's width, then `{name}.2`."""
    hidden = config.hidden_size
    inner = take(tensors, f"{name}.0.weight", (hidden, hidden)), take(tensors, f"{name}.0.bias", (hidden,))
    weight = take(tensors, f"{name}.2.weight", (num_labels, hidden))
    return ScoreHead(weight, take(tensors, f"{name}.2.bias", (num_labels,)), good_index, inner)


def lm_rows_head(
    config: ModelConfig, tensors: Mapping[str, torch.Tensor], token_ids: Sequence[int], good_index: int
) -> ScoreHead:
    """The rows of the LM head that belong to some tokens, as labels."""
    if not all(0 <= token < config.vocab_size for token in token_ids):
        raise UserError(f"tokens of a score must be within 0..{config.vocab_size - 1}, got {list(token_ids)}")
    weight = take(tensors, _lm_head_name(config), (config.vocab_size, config.hidden_size))
    return ScoreHead(weight[list(token_ids)].contiguous(), None, good_index)


def load_trunk_head(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> ScoreHead:
    """A head trained on the frozen trunk of a policy: a folder with `score.weight` (1, H) and `score.bias`."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no trunk head at {folder}: model.safetensors is missing")
    tensors = read_tensors(path, dtype, device)
    weight = take(tensors, "score.weight", (1, config.hidden_size))
    return ScoreHead(weight, take(tensors, "score.bias", (1,)), good_index=0)
