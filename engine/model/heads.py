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
from engine.model.products import linear
from engine.model.tensor_files import TensorFiles, runs, take
from engine.model.transformer import MAX_PACKED_WEIGHTS
from ttc_kernels.decoder import PackedLinear
from ttc_kernels.sample import sample, sample_head
from ttc_kernels.step_score import LabelHead, step_score


@dataclass(frozen=True)
class ScoreHead:
    """A score per hidden state: the sigmoid of a single label, or the softmax probability of the good label.

    `inner`, where there is one, is a linear layer with a ReLU before the labels.
    """

    weight: torch.Tensor  # (labels, width)
    bias: torch.Tensor | None  # (labels,)
    good_index: int
    inner: tuple[torch.Tensor, torch.Tensor] | None = None  # weight (width, H) and bias (width,)

    @property
    def num_params(self) -> int:
        """Number of weights that multiply every scored row."""
        return self.weight.numel() + (0 if self.inner is None else self.inner[0].numel())

    def scores(self, hidden: torch.Tensor, where: Sequence[int]) -> list[float]:
        """Scores of the rows `where` of `hidden`, (R, H); a score does not depend on the other rows."""
        return self.score(hidden, torch.tensor(where, dtype=torch.int32)).tolist()

    def score(
        self,
        hidden: torch.Tensor,  # (R, H)
        rows: torch.Tensor,  # (n,) int32
        impl: str = "auto",
        mask: torch.Tensor | None = None,  # (n,) bool; where it is False nothing is computed and the score is NaN
    ) -> torch.Tensor:
        """Scores of `rows`, (n,) float32, on the model's device and without waiting for a GPU."""
        if self.inner is not None:
            weight, bias = self.inner
            hidden = (linear(hidden, weight, rows.long()) + bias).relu().to(weight.dtype)
            rows = torch.arange(len(rows), dtype=torch.int32, device=hidden.device)
        head = LabelHead(self.weight, self.bias, self.good_index)
        return step_score(hidden, rows, head, mask=mask, impl=impl)


class LMHead:
    """Float32 logits of chosen rows. As for the trunk, the model's size alone decides the implementation.

    Of several ranks each has the weights of some of the tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        max_packed_weights: int = MAX_PACKED_WEIGHTS,
        placement: Placement = CPU,
    ):
        self.placement, self.ranks, self.vocab_size = placement, placement.ranks, config.vocab_size
        name, shape = _lm_head_name(config), (config.vocab_size, config.hidden_size)
        self.weight = self.packed = None  # exactly one of them is set below
        if placement.is_native and math.prod(shape) <= max_packed_weights:
            dtype = tensors.dtype if isinstance(tensors, TensorFiles) else tensors[name].dtype
            self.packed = PackedLinear.from_runs(runs(tensors, name, shape), dtype, *shape)
        else:
            whole, tokens = take(tensors, name, shape), self.ranks.tokens(config.vocab_size)
            part = whole[tokens.start : tokens.stop]
            self.weight = part if config.is_tied or len(part) == len(whole) else part.clone()

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits of `hidden[rows]`, (len(rows), vocabulary) float32; `rows` is int64."""
        if self.packed is not None:
            return self.packed.forward(hidden, rows)
        return self._of_all_ranks(linear(hidden, self.weight, rows))

    def _of_all_ranks(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.ranks.size == 1 else self.ranks.all_logits(logits, self.vocab_size)

    def draw(
        self,
        hidden: torch.Tensor,  # (R, H)
        sampling: Sequence[torch.Tensor],  # the arguments of `ttc_kernels.sample.sample` that follow the logits
        is_filtered: bool,  # whether any row has top-k, top-p or min-p
        marks: torch.Tensor | None = None,  # (vocabulary + 1,) bool
    ) -> tuple[torch.Tensor, ...]:
        """Samples a token per row: (tokens, logprobs), both (R,), on the model's device.

        With `marks`, a third tensor says whether each sampled token is marked.
        """
        impl = self.placement.impl
        if self.ranks.size == 1:
            return sample_head(hidden, self.weight, sampling, is_filtered=is_filtered, marks=marks, impl=impl)
        logits = torch.mm(hidden, self.weight.t()).float()
        if is_filtered:
            tokens, logprobs = sample(self._of_all_ranks(logits), *sampling, impl=impl)
        else:
            tokens, logprobs = self.ranks.draw(logits, self.vocab_size, sampling, impl)
        return (tokens, logprobs) if marks is None else (tokens, logprobs, marks[tokens.long()])


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
    """A head of one linear layer: `{name}.weight`, and `{name}.bias` where the checkpoint has one."""
    weight = take(tensors, f"{name}.weight", (num_labels, config.hidden_size))
    bias = take(tensors, f"{name}.bias", (num_labels,)) if f"{name}.bias" in tensors else None
    return ScoreHead(weight, bias, good_index)


def mlp_head(
    config: ModelConfig, tensors: Mapping[str, torch.Tensor], name: str, num_labels: int, good_index: int
) -> ScoreHead:
    """A head of linear `{name}.0` (as wide as the trunk), ReLU and linear `{name}.2`."""
    hidden = config.hidden_size
    inner = take(tensors, f"{name}.0.weight", (hidden, hidden)), take(tensors, f"{name}.0.bias", (hidden,))
    weight = take(tensors, f"{name}.2.weight", (num_labels, hidden))
    return ScoreHead(weight, take(tensors, f"{name}.2.bias", (num_labels,)), good_index, inner)


def lm_rows_head(
    config: ModelConfig, tensors: Mapping[str, torch.Tensor], token_ids: Sequence[int], good_index: int
) -> ScoreHead:
    """A head whose labels are tokens: their rows of the LM head. Raises UserError for ids out of range."""
    if not all(0 <= token < config.vocab_size for token in token_ids):
        raise UserError(f"tokens of a score must be within 0..{config.vocab_size - 1}, got {list(token_ids)}")
    weight = take(tensors, _lm_head_name(config), (config.vocab_size, config.hidden_size))
    return ScoreHead(weight[list(token_ids)].contiguous(), None, good_index)


def load_trunk_head(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> ScoreHead:
    """Loads a head that was trained on a policy's frozen trunk: `score.weight` (1, H) and `score.bias` (1,).

    Raises UserError for a folder without `model.safetensors`, or tensors of other shapes.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no trunk head at {folder}: model.safetensors is missing")
    tensors = read_tensors(path, dtype, device)
    weight = take(tensors, "score.weight", (1, config.hidden_size))
    return ScoreHead(weight, take(tensors, "score.bias", (1,)), good_index=0)
