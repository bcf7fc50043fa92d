"""What all trainings of verifiers share: rows in, batches, the loss on soft labels, held-out figures.

Binary cross-entropy against a share of right ends (Snell et al. 2024, appendix D).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
)

from engine.errors import UserError
from engine.model import read_config
from engine.prompts.histories import after_attempts
from engine.training.arguments import training_arguments
from engine.training.batches import LengthBatches, padding
from engine.training.stepwise import check_format, read_steps
from engine.verifiers.figures import auc, auc_within

UNLABELLED = -1.0


@dataclass(frozen=True)
class VerifierRecipe:
    """What trainings of verifiers from labelled rows have in common."""

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
            raise UserError(f"held_out must be within (0, 1), got {self.held_out}")
        if self.num_extra_layers < 0:
            raise UserError(f"num_extra_layers must be at least 0, got {self.num_extra_layers}")
        if self.num_epochs <= 0:
            raise UserError(f"num_epochs must be over 0, got {self.num_epochs}")


@dataclass(frozen=True)
class RowEncoder:
    """From a labelled row to token ids, as a search feeds them to the verifier.

    `end` closes an answer whose row holds texts alone, as the policy's own end of text closes it in a search.
    An answer that ends in the step separator goes on: nothing closes it.
    """

    tokenizer: PreTrainedTokenizerFast
    end: tuple[int, ...]  # token ids
    separator: str = "\n"

    @classmethod
    def of(cls, base: Path, recipe: VerifierRecipe) -> RowEncoder:
        """The encoder for a verifier that starts from `base`."""
        separator = "\n" if recipe.step_separator is None else recipe.step_separator.replace("\\n", "\n")
        end = read_config(base).eos_token_ids[:1]  # the one that PRMVerifier closes texts with
        return cls(PreTrainedTokenizerFast.from_pretrained(base), end, separator)

    def prompt(self, row: dict) -> list[int]:
        return list(self.tokenizer(row["prompt"])["input_ids"])

    def context(self, row: dict) -> list[int]:
        """The prompt, and before it the earlier attempts where the row has a history."""
        return after_attempts(self.prompt(row), row.get("history", ()))

    def steps(self, row: dict) -> list[list[int]]:
        """The ids of each step, those of the row where it has them."""
        if "token_ids" in row:
            return row["token_ids"]
        texts = row["completions"]
        steps = [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        if not texts[-1].endswith(self.separator):
            steps[-1] += self.end
        return steps


def step_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy where a label stands. logits (batch, length, 1 or 2), labels (batch, length)."""
    mask = labels != UNLABELLED
    return nn.functional.binary_cross_entropy_with_logits(log_odds(logits)[mask], labels[mask])


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Of the good label. logits (..., 1 or 2), result (...)."""
    return logits[..., -1] - (logits[..., 0] if logits.shape[-1] == 2 else 0.0)


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


def split_questions(rows: Sequence[dict], held_out: float, seed: int) -> tuple[list[dict], list[dict]]:
    """(training, held-out) rows; all answers to a question fall on the same side."""
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[: max(1, round(held_out * len(prompts)))])
    return [row for row in rows if row["prompt"] not in kept], [row for row in rows if row["prompt"] in kept]


def build_classifier(base: Path, recipe: VerifierRecipe) -> PreTrainedModel:
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


def read_rows(rollouts: Sequence[Path], recipe: VerifierRecipe) -> list[dict]:
    """Labelled rows of all files. Raises UserError as `read_steps` does."""
    options = {"neutral": recipe.neutral, "separator": recipe.step_separator}
    return [row for path in rollouts for row in read_steps(path, recipe.format, **options)]


def fit(
    model: nn.Module,
    rows: tuple[Sequence[dict], Sequence[dict]],
    encode: Callable[[dict], tuple[list[int], list[float]]],
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    recipe: VerifierRecipe,
    context: int,
    device: str,
) -> dict[str, float]:
    """Trains on the first `rows` and returns figures of the others, which `split_questions` kept.

    `encode` gives token ids and a label for each, UNLABELLED but where a score is read. Resumes from the last
    checkpoint in `work`. Raises UserError for rows of one question alone, or one of more tokens than `context`.
    """
    if not rows[0]:
        raise UserError(f"the rows are of one question only, {rows[1][0]['prompt']!r}: nothing is left to train on")
    train, held = (_batches(part, encode, tokenizer, recipe, context) for part in rows)
    trainer = StepTrainer(
        model=model,
        args=training_arguments(work, device, recipe.seed, recipe.learning_rate, num_train_epochs=recipe.num_epochs),
        train_dataset=train,
        eval_dataset=held,
        data_collator=lambda items: items[0],
    )
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")) or None)
    figures = held_out_figures(model, held, device)
    return {"held_out_loss": trainer.evaluate()["eval_loss"], **figures}


def _batches(rows: Sequence[dict], encode, tokenizer, recipe: VerifierRecipe, context: int) -> LengthBatches:
    encoded = [(*encode(row), row["prompt"]) for row in rows]
    longest = max(len(ids) for ids, *_ in encoded)
    if longest > context:
        raise UserError(f"an answer with its prompt has {longest} tokens, the context of the model holds {context}")
    return LengthBatches(
        encoded,
        pad=padding(tokenizer),
        no_label=UNLABELLED,
        tokens_per_step=recipe.tokens_per_step,
        seed=recipe.seed,
    )


@torch.no_grad()
def held_out_figures(model: nn.Module, batches: Dataset, device: str) -> dict[str, float]:
    """Of held-out labels: their mean and entropy floor, and the area under the ROC curve.

    Where the batches name the question of every row, also the mean area within questions.
    """
    model.eval()
    odds, labels = [], []
    for index in range(len(batches)):
        batch = batches[index]
        logits = model(input_ids=batch["input_ids"].to(device))["logits"].float().cpu()
        mask = batch["labels"] != UNLABELLED
        odds.append(log_odds(logits)[mask])
        labels.append(batch["labels"][mask])
    score, label = torch.cat(odds), torch.cat(labels)
    is_good = label >= 0.5
    figures = {
        "held_out_steps": len(label),
        "mean_label": label.mean().item(),
        "label_entropy": nn.functional.binary_cross_entropy(label, label).item(),
        "auc": auc(score.numpy(), is_good.numpy()),
    }
    if isinstance(batches, LengthBatches):
        rows = [row for batch in batches.batches for row in batch]
        questions = [prompt for _, marks, prompt in rows for mark in marks if mark != UNLABELLED]
        figures["auc_within_questions"] = auc_within(score.numpy(), is_good.numpy(), questions)
    return figures
