"""Training an outcome verifier: one score per answer, read at its end (Snell et al. 2024, appendix D and F).

Rows with a history put those attempts before the answer, as a revision model's context holds them: the selector of
revisions has to judge an attempt in the light of the ones before it (section 6.1).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from engine.errors import UserError
from engine.training.verifier import (
    UNLABELLED,
    RowEncoder,
    VerifierRecipe,
    build_classifier,
    fit,
    read_rows,
    split_questions,
)


@dataclass(frozen=True)
class ORMRecipe(VerifierRecipe):
    """What `ttc train orm` does; with the data that `make models` makes, the default is the shipped ORM.

    As many samples of a question are alike, `max_answers` of them teach nearly what all of them do.
    """

    max_answers: int = 20  # of a question, drawn by the seed; those with a history are counted apart
    distinct: bool = False  # equal answers of a question once; the score is then no longer that of samples
    balance: bool = False  # as many right answers as wrong ones of each question, half of max_answers at most

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 2 if self.balance else 1
        if self.max_answers < least:
            raise UserError(f"max_answers must be at least {least}, got {self.max_answers}")


def choose_answers(rows: Iterable[dict], recipe: ORMRecipe) -> list[dict]:
    """Up to `max_answers` rows of each question without a history, and as many with one."""

    def key(row: dict) -> tuple[str, bool]:
        return row["prompt"], bool(row.get("history"))

    chosen: list[dict] = []
    for (prompt, has_history), group in groupby(sorted(rows, key=key), key):
        rng = random.Random(f"orm/{recipe.seed}/{has_history}/{prompt}")
        chosen += _choose(list(group), recipe, rng)
    return chosen


def _choose(rows: list[dict], recipe: ORMRecipe, rng: random.Random) -> list[dict]:
    if recipe.distinct:
        rows = list({(str(row.get("history")), "".join(row["completions"])): row for row in rows}.values())
    if not recipe.balance:
        return rng.sample(rows, min(recipe.max_answers, len(rows)))
    right = [row for row in rows if row["labels"][-1] >= 0.5]
    wrong = [row for row in rows if row["labels"][-1] < 0.5]
    num_each = min(recipe.max_answers // 2, max(1, min(len(right), len(wrong))))  # one of a question of one kind
    return [row for kind in (right, wrong) for row in rng.sample(kind, min(num_each, len(kind)))]


def encode_answer(row: dict, encoder: RowEncoder) -> tuple[list[int], list[float]]:
    """Token ids of a row, and the label of its last step at the last of them, UNLABELLED before it."""
    ids = [*encoder.context(row), *(token for step in encoder.steps(row) for token in step)]
    return ids, [UNLABELLED] * (len(ids) - 1) + [row["labels"][-1]]


def train_orm(
    rollouts: Sequence[Path], base: Path, out: Path, work: Path, recipe: ORMRecipe, device: str = "cpu"
) -> dict:
    """Trains a two-label token classifier that starts from the weights of `base`; returns held-out figures.

    `base` is a causal decoder or a token classifier, with its tokenizer. Raises UserError for a base whose
    config.json names no end of text, at which the score is read.
    """
    encoder = RowEncoder.of(base, recipe)
    if not encoder.end:
        raise UserError(f"an outcome verifier is read at the end of text, and config.json of {base} names none")
    rows = choose_answers(read_rows(rollouts, recipe), recipe)
    parts = split_questions(rows, recipe.held_out, recipe.seed)
    model = build_classifier(base, recipe)
    figures = fit(
        model,
        parts,
        lambda row: encode_answer(row, encoder),
        encoder.tokenizer,
        work,
        recipe,
        model.config.max_position_embeddings,
        device,
    )
    model.save_pretrained(out)
    encoder.tokenizer.save_pretrained(out)
    figures["held_out_answers"] = figures.pop("held_out_steps")
    return {"answers": len(rows), "with_a_history": sum(bool(row.get("history")) for row in rows), **figures}
