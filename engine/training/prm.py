"""Training step verifiers on soft labels: a PRM of its own, and a head on the policy's trunk.

Binary cross-entropy against the share of rollouts that ended right (Snell et al. 2024, appendix D).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from engine.training.arguments import training_arguments
from engine.training.stepwise import check_format, read_steps

UNLABELLED = -1.0


@dataclass(frozen=True)
class PRMRecipe:
    """What `ttc train prm` does; with the base that `make models` trains, the default is the shipped PRM."""

    num_extra_layers: int = 0  # on top of the base's; they add nothing before training
    num_epochs: float = 3.0
    tokens_per_step: int = 6144
    learning_rate: float = 3e-4
    dropout: float = 0.05  # on the head's input
    held_out: float = 0.1  # share of questions kept for evaluation
    seed: int = 0
    format: str = "stepwise"  # of the rollouts: one of engine.training.stepwise.FORMATS
    neutral: str | None = None  # "good" or "bad": what PRM800K's rating 0 means
    step_separator: str | None = None  # ends the steps of formats that leave it out

    def __post_init__(self) -> None:
        check_format(self.format, self.neutral, self.step_separator)
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be within (0, 1), got {self.held_out}")
        if self.num_extra_layers < 0:
            raise ValueError(f"num_extra_layers must be at least 0, got {self.num_extra_layers}")
        if self.num_epochs <= 0:
            raise ValueError(f"num_epochs must be over 0, got {self.num_epochs}")


@dataclass(frozen=True)
class TrunkHeadRecipe(PRMRecipe):
    """What `ttc train trunk-head` does: a linear head bears a larger rate, and needs fewer epochs."""

    num_extra_layers: int = 0
    num_epochs: float = 2.0
    tokens_per_step: int = 6144
    learning_rate: float = 5e-3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_extra_layers:
            raise ValueError(f"a trunk head adds no layers, got num_extra_layers {self.num_extra_layers}")


class StepBatches(Dataset):
    """Item i is a whole batch of answers of nearly one length.

    `labels` are float, UNLABELLED but where a score is read. `shift` says where that is: 0 at the
    last token of a step, 1 at the token before it, whose pass sampled the step's end.
    """

    def __init__(self, rows: Sequence[dict], tokenizer, tokens_per_step: int, shift: int, seed: int):
        encoded = sorted((self._encode(row, tokenizer, shift) for row in rows), key=lambda pair: len(pair[0]))
        self.batches: list[list[tuple[list[int], list[float]]]] = [[]]
        for pair in encoded:
            if self.batches[-1] and len(pair[0]) * (len(self.batches[-1]) + 1) > tokens_per_step:
                self.batches.append([])
            self.batches[-1].append(pair)
        random.Random(seed).shuffle(self.batches)
        self.pad = tokenizer.pad_token_id

    @staticmethod
    def _encode(row: dict, tokenizer, shift: int) -> tuple[list[int], list[float]]:
        ids = tokenizer(row["prompt"])["input_ids"]
        labels = [UNLABELLED] * len(ids)
        steps = row.get("token_ids") or [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in row["completions"]
        ]
        for step, label in zip(steps, row["labels"], strict=True):
            ids += step
            labels += [UNLABELLED] * len(step)
            labels[-1 - shift] = label
        return ids, labels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.batches[index]
        longest = max(len(ids) for ids, _ in batch)
        return {
            "input_ids": torch.tensor([ids + [self.pad] * (longest - len(ids)) for ids, _ in batch]),
            "labels": torch.tensor([labels + [UNLABELLED] * (longest - len(labels)) for _, labels in batch]),
        }


def step_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy where a label stands. logits (batch, length, 1 or 2), labels (batch, length).

    With two labels the log-odds of the good one are the difference of the logits.
    """
    odds = logits[..., -1] - (logits[..., 0] if logits.shape[-1] == 2 else 0.0)
    mask = labels != UNLABELLED
    return nn.functional.binary_cross_entropy_with_logits(odds[mask], labels[mask])


class StepTrainer(Trainer):
    """transformers' Trainer with the soft-label loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"])
        loss = step_loss(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None


class TrunkProbe(nn.Module):
    """A linear score on the hidden states of a frozen policy."""

    def __init__(self, policy: Path, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.trunk = AutoModel.from_pretrained(policy).requires_grad_(False)
        self.score = nn.Linear(self.trunk.config.hidden_size, 1)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            hidden = self.trunk(input_ids).last_hidden_state
        return {"logits": self.score(self.dropout(hidden))}


def split_questions(rows: Sequence[dict], held_out: float, seed: int) -> tuple[list[dict], list[dict]]:
    """(training, held-out) rows; all answers to a question fall on the same side."""
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[: max(1, round(held_out * len(prompts)))])
    return [row for row in rows if row["prompt"] not in kept], [row for row in rows if row["prompt"] in kept]


def build_prm(base: Path, recipe: PRMRecipe) -> PreTrainedModel:
    """The base's trunk with extra layers and a two-label head, the base's own where it is such a classifier.

    New layers add nothing to the residual stream at first: training starts from what the base knows.
    """
    torch.manual_seed(recipe.seed)
    config = AutoConfig.from_pretrained(base)
    num_layers = config.num_hidden_layers
    has_head = config.num_labels == 2 and (config.architectures or [""])[0].endswith("ForTokenClassification")
    config.num_hidden_layers += recipe.num_extra_layers
    config.classifier_dropout = recipe.dropout
    config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    if getattr(config, "layer_types", None) and recipe.num_extra_layers:
        config.layer_types = [*config.layer_types, *config.layer_types[-1:] * recipe.num_extra_layers]
    model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    if has_head:
        model.load_state_dict(AutoModelForTokenClassification.from_pretrained(base).state_dict(), strict=False)
    else:
        model.base_model.load_state_dict(AutoModel.from_pretrained(base).state_dict(), strict=False)
    for layer in model.base_model.layers[num_layers:]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def train_prm(
    rollouts: Sequence[Path], base: Path, out: Path, work: Path, recipe: PRMRecipe, device: str = "cpu"
) -> dict:
    """Trains a two-label token classifier that starts from the weights of `base`; returns held-out figures.

    `base` is the policy, or a decoder with its tokenizer that knows more than the policy.
    """
    model = build_prm(base, recipe)
    tokenizer, figures = _fit(model, rollouts, base, work, recipe, shift=0, device=device)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return figures


def train_trunk_head(
    rollouts: Sequence[Path], policy: Path, out: Path, work: Path, recipe: PRMRecipe, device: str = "cpu"
) -> dict:
    """Trains a linear head on the policy's frozen trunk; returns held-out figures."""
    torch.manual_seed(recipe.seed)
    model = TrunkProbe(policy, recipe.dropout)
    _, figures = _fit(model, rollouts, policy, work, recipe, shift=1, device=device)
    out.mkdir(parents=True, exist_ok=True)
    head = {f"score.{name}": tensor.detach().contiguous() for name, tensor in model.score.named_parameters()}
    save_file(head, out / "model.safetensors")
    return figures


def _fit(
    model: nn.Module, rollouts: Sequence[Path], base: Path, work: Path, recipe: PRMRecipe, *, shift: int, device: str
) -> tuple[PreTrainedTokenizerFast, dict]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    rows = [
        row
        for path in rollouts
        for row in read_steps(path, recipe.format, neutral=recipe.neutral, separator=recipe.step_separator)
    ]
    train, held = split_questions(rows, recipe.held_out, recipe.seed)
    if not train:
        raise ValueError(f"{', '.join(map(str, rollouts))} holds one question only: nothing is left to train on")
    batches = [StepBatches(rows, tokenizer, recipe.tokens_per_step, shift, recipe.seed) for rows in (train, held)]
    arguments: TrainingArguments = training_arguments(
        work, device, recipe.seed, recipe.learning_rate, num_train_epochs=recipe.num_epochs
    )
    trainer = StepTrainer(
        model=model,
        args=arguments,
        train_dataset=batches[0],
        eval_dataset=batches[1],
        data_collator=lambda items: items[0],
    )
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")) or None)
    loss = trainer.evaluate()["eval_loss"]
    return tokenizer, {"held_out_loss": loss, **held_out_figures(model, batches[1], device)}


@torch.no_grad()
def held_out_figures(model: nn.Module, batches: StepBatches, device: str) -> dict[str, float]:
    """Of held-out questions: the mean label, the entropy floor of the labels, and the area under the ROC curve."""
    model.eval()
    odds, labels = [], []
    for index in range(len(batches)):
        batch = batches[index]
        logits = model(input_ids=batch["input_ids"].to(device))["logits"].float().cpu()
        mask = batch["labels"] != UNLABELLED
        odds.append((logits[..., -1] - (logits[..., 0] if logits.shape[-1] == 2 else 0.0))[mask])
        labels.append(batch["labels"][mask])
    score, label = torch.cat(odds), torch.cat(labels)
    floor = nn.functional.binary_cross_entropy(label, label).item()
    return {
        "held_out_steps": len(label),
        "mean_label": label.mean().item(),
        "label_entropy": floor,
        "auc": _auc(score, label >= 0.5),
    }


def _auc(score: torch.Tensor, is_good: torch.Tensor) -> float:
    """Probability that a good step is scored over a bad one (ties by rank order)."""
    ranks = torch.empty(len(score), dtype=torch.float64)
    ranks[score.argsort()] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    good, bad = int(is_good.sum()), int((~is_good).sum())
    if not good or not bad:
        return float("nan")
    return float((ranks[is_good].sum() - good * (good + 1) / 2) / (good * bad))
