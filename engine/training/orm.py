"""Trains an ORM: one score per answer, read at its end (Snell et al. 2024, appendices D and F).

In rows with a history, earlier attempts come before the answer as in a revision model's context, because the verifier
of revisions judges an attempt together with those before it (section 6.1).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from engine.errors import UserError
from engine.training.checkpoints import Checkpoints, made_of, save_model
from engine.training.mixes import Rollouts, read_heaps
from engine.training.verifier import UNLABELLED, RowEncoder, VerifierRecipe, build_classifier, fit, read_rows


@dataclass(frozen=True)
class ORMRecipe(VerifierRecipe):
    """Options of `ttc train orm`; the Makefile has those of the shipped ORM.

    Many samples of a question are similar, so `max_answers` of them teach nearly as much as all.
    """

    max_answers: int = 20  # per question, drawn by the seed; as many again with a history
    distinct: bool = False  # use equal answers to a question once; scores are then no longer calibrated to samples
    balance: bool = False  # use as many right as wrong answers of each question, at most half of max_answers each

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 2 if self.balance else 1
        if self.max_answers < least:
            raise UserError(f"max_answers must be at least {least}, got {self.max_answers}")


def choose_answers(rows: Iterable[dict], recipe: ORMRecipe) -> list[dict]:
    """Up to `max_answers` rows per question without a history, and as many with one."""

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
    num_each = min(recipe.max_answers // 2, max(1, min(len(right), len(wrong))))  # one if all are of one kind
    return [row for kind in (right, wrong) for row in rng.sample(kind, min(num_each, len(kind)))]


def encode_answer(row: dict, encoder: RowEncoder) -> tuple[list[int], list[float]]:
    """Token ids of a row, and labels: that of its last step at the last token, UNLABELLED before."""
    ids = [*encoder.context(row), *(token for step in encoder.steps(row) for token in step)]
    return ids, [UNLABELLED] * (len(ids) - 1) + [row["labels"][-1]]


def train_orm(
    rollouts: Rollouts,
    base: Path,
    out: Path,
    work: Path,
    recipe: ORMRecipe,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict:
    """Trains a two-label token classifier that starts from the weights of `base`; returns held-out figures.

    `base` is a folder with a causal decoder or a token classifier, and its tokenizer. Raises UserError if its
    config.json names no end of text, where the score is read.
    """
    encoder = RowEncoder.of(base, recipe)
    if not encoder.end:
        raise UserError(f"an outcome verifier is read at the end of text, and config.json of {base} names none")
    heaps = read_heaps(rollouts, lambda paths: choose_answers(read_rows(paths, recipe), recipe), recipe)
    rows = [row for heap in heaps for row in heap.train + heap.held]
    model = build_classifier(base, recipe)
    checkpoints = Checkpoints(work, made_of("orm", recipe, device, base=base, rollouts=rollouts), overwrite)
    figures = fit(model, heaps, encode_answer, encoder, checkpoints, recipe, device, judges="answers")
    save_model(out, model, encoder.tokenizer)
    return {"answers": len(rows), "with_a_history": sum(bool(row.get("history")) for row in rows), **figures}
