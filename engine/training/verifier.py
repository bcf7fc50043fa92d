"""What all trainings of verifiers share: reading rows, batches, the loss on soft labels, held-out figures.

The loss is binary cross-entropy against the share of right rollouts (Snell et al. 2024, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
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
from engine.training.arguments import UpdatesRecipe, load_base, read_tokenizer, run_trainer, training_arguments
from engine.training.batches import DrawnBatches, FixedBatches, Packing, Source, check_tokens
from engine.training.checkpoints import Checkpoints
from engine.training.mixes import Heap, mix_figures
from engine.training.stepwise import check_format, read_steps
from engine.verifiers.figures import auc, auc_within, first_wrong_area, first_zero

UNLABELLED = -1.0


@dataclass(frozen=True)
class VerifierRecipe(UpdatesRecipe):
    """The options that trainings of verifiers share."""

    num_extra_layers: int = 0  # on top of the base's; initialised to add nothing
    dropout: float = 0.05  # on the head's input
    format: str = "stepwise"  # of the rollouts: one of engine.training.stepwise.FORMATS
    neutral: str | None = None  # "good" or "bad": what PRM800K's rating 0 means
    step_separator: str | None = None  # ends the steps of formats that leave it out

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format(self.format, self.neutral, self.step_separator)
        if self.num_extra_layers < 0:
            raise UserError(f"num_extra_layers must be at least 0, got {self.num_extra_layers}")
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


@dataclass(frozen=True)
class JudgedRow:
    """A labelled answer and the verifier's log odds, both of all labelled places."""

    question: str
    odds: tuple[float, ...]
    labels: tuple[float, ...]


def fit(
    model: nn.Module,  # from token ids to logits (batch, length, 1 or 2)
    heaps: Sequence[Heap],  # of labelled answers
    encode: Encode,
    encoder: RowEncoder,
    checkpoints: Checkpoints,
    recipe: VerifierRecipe,
    device: str,
    judges: str = "steps",  # or "answers"
) -> dict:
    """Trains on all but the held-out rows, and returns figures of these; if there are several heaps, of each too.

    Resumes from the last checkpoint. Raises UserError for a row with more tokens than the model's context.
    """
    heaps = [heap.map(lambda rows: _encoded(rows, encode, encoder)) for heap in heaps]
    packing = Packing.of(encoder.tokenizer, recipe.tokens_per_step, UNLABELLED)
    sources = [Source(lambda _, rows=heap.train: rows, heap.weight) for heap in heaps]
    batches = DrawnBatches(sources, packing, recipe.num_updates, recipe.seed)
    arguments = training_arguments(checkpoints.folder, device, **recipe.schedule)
    run_trainer(StepTrainer, model, arguments, checkpoints, batches)
    held = [list(judged_rows(model, FixedBatches(heap.held, packing), device)) for heap in heaps]
    return mix_figures(heaps, batches, held, partial(held_out_figures, judges=judges))


def _encoded(rows: Sequence[dict], encode: Encode, encoder: RowEncoder) -> list[tuple]:
    encoded = [(*encode(row, encoder), row["prompt"]) for row in rows]
    for ids, _, prompt in encoded:
        check_tokens(ids, prompt, encoder.vocabulary)
    longest, most = max((len(ids) for ids, *_ in encoded), default=0), encoder.max_positions
    if longest > most:
        raise UserError(f"an answer with its prompt has {longest} tokens, the context of the model holds {most}")
    return encoded


@torch.no_grad()
def judged_rows(model: nn.Module, batches: FixedBatches, device: str) -> Iterator[JudgedRow]:
    """Every row of the batches with the model's log odds."""
    model.eval()
    for batch in batches.batches:
        ids = batches.packing.tensors(batch)["input_ids"].to(device)
        odds = log_odds(model(input_ids=ids)["logits"].float()).tolist()
        for (_, labels, question), scores in zip(batch, odds, strict=True):
            marks = [place for place, label in enumerate(labels) if label != UNLABELLED]
            yield JudgedRow(question, *(tuple(run[place] for place in marks) for run in (scores, labels)))


def held_out_figures(rows: Sequence[JudgedRow], judges: str = "steps") -> dict[str, float]:
    """The loss, the labels' number, mean and entropy (the least loss possible), and the areas over all labels.

    Of steps also the areas over first wrong ones, by labels.
    """
    odds, labels = (torch.tensor([each for row in rows for each in getattr(row, name)]) for name in ("odds", "labels"))
    questions = [row.question for row in rows for _ in row.labels]
    is_good = labels >= 0.5
    figures = {
        "held_out_loss": nn.functional.binary_cross_entropy_with_logits(odds, labels).item(),
        f"held_out_{judges}": len(labels),
        "mean_label": labels.mean().item(),
        "label_entropy": nn.functional.binary_cross_entropy(labels, labels).item(),
        "auc": auc(odds.numpy(), is_good.numpy()),
        "auc_within_questions": auc_within(odds.numpy(), is_good.numpy(), questions),
    }
    if judges == "steps":
        runs = [(row.odds, first_zero(row.labels), row.question) for row in rows]
        figures |= asdict(first_wrong_area(*zip(*runs, strict=True)))
    return figures
