"""What all trainings of verifiers share: reading rows, batches, the loss on soft labels, held-out figures.

The loss is binary cross-entropy against the share of right rollouts (Snell et al. 2024, appendix D).
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
from engine.model import read_config, read_raw_config
from engine.prompts.histories import after_attempts
from engine.runtime.vocabulary import Vocabulary
from engine.training.arguments import load_base, read_tokenizer, run_trainer, training_arguments
from engine.training.batches import LengthBatches, check_tokens
from engine.training.checkpoints import Checkpoints
from engine.training.stepwise import check_format, read_steps
from engine.verifiers.figures import auc, auc_within

UNLABELLED = -1.0


@dataclass(frozen=True)
class VerifierRecipe:
    """The options that trainings of verifiers share."""

    num_extra_layers: int = 0  # on top of the base's; initialised to add nothing
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
        if not 0 <= self.dropout <= 1:
            raise UserError(f"dropout must be within [0, 1], got {self.dropout}")


@dataclass(frozen=True)
class RowEncoder:
    """Encodes a labelled row as the token ids that the verifier is given in a search.

    `end` is appended to an answer whose row has only texts, as the policy ends its answers with it in a search. An
    answer that ends in the step separator is not complete and gets no `end`.
    """

    tokenizer: PreTrainedTokenizerFast
    end: tuple[int, ...]  # token ids
    max_positions: int  # tokens that the verifier's context holds
    vocabulary: Vocabulary
    separator: str = "\n"

    @classmethod
    def of(cls, base: Path, recipe: VerifierRecipe) -> RowEncoder:
        """The encoder for a verifier that starts from `base`."""
        separator = "\n" if recipe.step_separator is None else recipe.step_separator.replace("\\n", "\n")
        config, tokenizer = read_config(base), read_tokenizer(base)
        end = config.eos_token_ids[:1]  # PRMVerifier appends the same one to texts
        max_positions = read_raw_config(base)["max_position_embeddings"]
        vocabulary = Vocabulary(tokenizer.backend_tokenizer, config.vocab_size)
        return cls(tokenizer, end, max_positions, vocabulary, separator)

    def prompt(self, row: dict) -> list[int]:
        """The token ids of the prompt alone."""
        return list(self.tokenizer(row["prompt"])["input_ids"])

    def context(self, row: dict) -> list[int]:
        """The token ids before the answer: the prompt, after the earlier attempts if the row has a history."""
        return after_attempts(self.prompt(row), row.get("history", ()))

    def steps(self, row: dict) -> list[list[int]]:
        """The token ids of each step: the row's own, if it has them."""
        if "token_ids" in row:
            return row["token_ids"]
        texts = row["completions"]
        steps = [self.vocabulary.encode(text, is_start=False) for text in texts]  # as PRMVerifier does
        if not texts[-1].endswith(self.separator):
            steps[-1] += self.end
        return steps


Encode = Callable[[dict, RowEncoder], tuple[list[int], list[float]]]  # row -> token ids and a label for each


def step_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of labelled positions. logits (batch, length, 1 or 2), labels (batch, length)."""
    mask = labels != UNLABELLED
    return nn.functional.binary_cross_entropy_with_logits(log_odds(logits)[mask], labels[mask])


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    """The log odds of the good label, (...), from logits (..., 1 or 2)."""
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
    """(training, held-out) rows; all answers to a question are on the same side."""
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[: max(1, round(held_out * len(prompts)))])
    return [row for row in rows if row["prompt"] not in kept], [row for row in rows if row["prompt"] in kept]


def build_classifier(base: Path, recipe: VerifierRecipe) -> PreTrainedModel:
    """The base's trunk with extra layers and a two-label head: the base's own if it has one, else a new one.

    Extra layers are initialised to add nothing to the residual stream, so that training starts from the base.
    """
    architecture = read_config(base)
    has_head = architecture.num_labels == 2
    start = load_base(AutoModelForTokenClassification if has_head else AutoModel, base)
    config, num_layers = AutoConfig.from_pretrained(base, trust_remote_code=False), architecture.num_layers
    config.num_hidden_layers += recipe.num_extra_layers
    config.classifier_dropout = recipe.dropout
    config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    if getattr(config, "layer_types", None) and recipe.num_extra_layers:
        config.layer_types = [*config.layer_types, *config.layer_types[-1:] * recipe.num_extra_layers]
    torch.manual_seed(recipe.seed)
    model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    (model if has_head else model.base_model).load_state_dict(start.state_dict(), strict=False)
    for layer in model.base_model.layers[num_layers:]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def read_rows(rollouts: Sequence[Path], recipe: VerifierRecipe) -> list[dict]:
    """The labelled rows of all files. Raises UserError as `read_steps` does."""
    options = {"neutral": recipe.neutral, "separator": recipe.step_separator}
    return [row for path in rollouts for row in read_steps(path, recipe.format, **options)]


def fit(
    model: nn.Module,  # from token ids to logits (batch, length, 1 or 2)
    rows: Sequence[dict],  # labelled answers
    encode: Encode,
    encoder: RowEncoder,
    checkpoints: Checkpoints,
    recipe: VerifierRecipe,
    device: str,
) -> dict[str, float]:
    """Trains on the rows, a share of the questions held out, and returns figures on these.

    Resumes from the last checkpoint. Raises UserError if all rows are of one question, or if one has more
    tokens than the model's context.
    """
    train_rows, held_rows = split_questions(rows, recipe.held_out, recipe.seed)
    if not train_rows:
        raise UserError(f"the rows are of one question only, {held_rows[0]['prompt']!r}: nothing is left to train on")
    train, held = (_batches(part, encode, encoder, recipe) for part in (train_rows, held_rows))
    options = {"num_train_epochs": recipe.num_epochs}
    arguments = training_arguments(checkpoints.folder, device, recipe.seed, recipe.learning_rate, **options)
    trainer = run_trainer(StepTrainer, model, arguments, checkpoints, train, held)
    figures = held_out_figures(model, held, device)
    return {"held_out_loss": trainer.evaluate()["eval_loss"], **figures}


def _batches(rows: Sequence[dict], encode: Encode, encoder: RowEncoder, recipe: VerifierRecipe) -> LengthBatches:
    encoded = [(*encode(row, encoder), row["prompt"]) for row in rows]
    for ids, _, prompt in encoded:
        check_tokens(ids, prompt, encoder.vocabulary)
    longest, most = max(len(ids) for ids, *_ in encoded), encoder.max_positions
    if longest > most:
        raise UserError(f"an answer with its prompt has {longest} tokens, the context of the model holds {most}")
    options = {"tokens_per_step": recipe.tokens_per_step, "seed": recipe.seed}
    return LengthBatches(encoded, encoder.tokenizer, no_label=UNLABELLED, **options)


@torch.no_grad()
def held_out_figures(model: nn.Module, batches: Dataset, device: str) -> dict[str, float]:
    """Figures of held-out labels: their mean and entropy (the least loss possible), and the model's AUC.

    If the batches name the question of every row, also the mean AUC within questions.
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
