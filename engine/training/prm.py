"""Trains step verifiers on soft labels: a separate PRM, and a head on the policy's trunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from transformers import AutoModel

from engine.errors import UserError
from engine.files import write_atomically
from engine.training.arguments import load_base
from engine.training.checkpoints import Checkpoints, made_of, save_model
from engine.training.labels import LABELS, harden_labels, pool_labels
from engine.training.mixes import Heap, Rollouts, read_heaps
from engine.training.verifier import UNLABELLED, RowEncoder, VerifierRecipe, build_classifier, fit, read_rows


@dataclass(frozen=True)
class PRMRecipe(VerifierRecipe):
    """Options of `ttc train prm`; the Makefile has those of the shipped PRM."""

    labels: str = "soft"  # shares of right rollouts; or "hard", good or bad
    hard_threshold: float = 0.0  # with hard labels, steps with a share above it are good
    pooled: bool = field(default=False, metadata={"flags": "--pooled/--per-step"})  # equal prefixes share their mean

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in LABELS:
            raise UserError(f"labels must be one of {', '.join(LABELS)}, got {self.labels!r}")
        if not 0 <= self.hard_threshold < 1:
            raise UserError(f"hard_threshold must be within [0, 1), got {self.hard_threshold}")
        if self.labels == "soft" and self.hard_threshold:
            raise UserError(f"hard_threshold has no effect with soft labels, got {self.hard_threshold}")


@dataclass(frozen=True)
class TrunkHeadRecipe(PRMRecipe):
    """Options of `ttc train trunk-head`: a linear head tolerates a higher learning rate and larger batches."""

    num_extra_layers: int = 0
    num_updates: int = 1000
    tokens_per_step: int = 6144
    learning_rate: float = 5e-3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_extra_layers:
            raise UserError(f"a trunk head adds no layers, got num_extra_layers {self.num_extra_layers}")


class TrunkProbe(nn.Module):
    """A linear score on the hidden states of a frozen policy."""

    def __init__(self, policy: Path, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.trunk = load_base(AutoModel, policy).requires_grad_(False)
        self.score = nn.Linear(self.trunk.config.hidden_size, 1)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """`logits`, (batch, length, 1), for `input_ids`, (batch, length)."""
        with torch.no_grad():
            hidden = self.trunk(input_ids).last_hidden_state
        return {"logits": self.score(self.dropout(hidden))}


def train_prm(
    rollouts: Rollouts,
    base: Path,
    out: Path,
    work: Path,
    recipe: PRMRecipe,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict:
    """Trains a two-label token classifier that starts from the weights of `base`; returns held-out figures.

    `rollouts` are files as one heap, or each with its weight: pooled labels are then those of a file. `base` is a
    folder with its tokenizer: the policy, another decoder, or a verifier to go on from, whose head is kept.
    """
    encoder = RowEncoder.of(base, recipe)
    model = build_classifier(base, recipe)
    checkpoints = Checkpoints(work, made_of("prm", recipe, device, base=base, rollouts=rollouts), overwrite)
    figures = fit(model, _heaps(rollouts, recipe), encode_steps, encoder, checkpoints, recipe, device)
    save_model(out, model, encoder.tokenizer)
    return figures


def train_trunk_head(
    rollouts: Rollouts,
    policy: Path,
    out: Path,
    work: Path,
    recipe: TrunkHeadRecipe,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict:
    """Trains a linear head on the policy's frozen trunk; returns held-out figures."""
    encoder = RowEncoder.of(policy, recipe)
    torch.manual_seed(recipe.seed)
    model = TrunkProbe(policy, recipe.dropout)
    encode = partial(encode_steps, shift=1)
    checkpoints = Checkpoints(work, made_of("trunk-head", recipe, device, policy=policy, rollouts=rollouts), overwrite)
    figures = fit(model, _heaps(rollouts, recipe), encode, encoder, checkpoints, recipe, device)
    head = {f"score.{name}": tensor.detach().contiguous() for name, tensor in model.score.named_parameters()}
    write_atomically(out / "model.safetensors", save(head))
    return figures


def _heaps(rollouts: Rollouts, recipe: PRMRecipe) -> list[Heap]:
    return read_heaps(rollouts, lambda paths: read_steps_to_learn(paths, recipe), recipe)


def read_steps_to_learn(rollouts: Sequence[Path], recipe: PRMRecipe) -> list[dict]:
    """Rows of all files, with labels pooled and hardened as the recipe says."""
    rows = read_rows(rollouts, recipe)
    rows = pool_labels(rows) if recipe.pooled else rows
    if recipe.labels == "hard":
        rows = harden_labels(rows, recipe.hard_threshold)
        rows = harden_labels(pool_labels(rows), 0.0) if recipe.pooled else rows  # good in one answer, good in all
    return rows


def encode_steps(row: dict, encoder: RowEncoder, shift: int = 0) -> tuple[list[int], list[float]]:
    """Token ids of a row and their labels, one per step at its last token, else UNLABELLED.

    With a `shift` of 1 it is at the token before, from which the step's last token was sampled: a trunk head reads
    its score there. A row's history is left out, because a step verifier judges an answer by itself.
    """
    ids = encoder.prompt(row)
    labels = [UNLABELLED] * len(ids)
    for step, label in zip(encoder.steps(row), row["labels"], strict=True):
        ids += step
        labels += [UNLABELLED] * len(step)
        labels[-1 - shift] = label
    return ids, labels
