"""Accuracies at smaller budgets, from a row's independent samples."""

from __future__ import annotations

from collections.abc import Sequence

from engine.results.rows import Row
from engine.search.vote import vote
from engine.types import Candidate

# Strategies whose candidates are independent samples, and the votes that they can use.
_VOTES = {"majority": ("majority",), "best-of-n": ("weighted", "naive", "majority")}


def pool_vote(strategy: str, rows: Sequence[Row]) -> str | None:
    """The vote that reproduces the prediction of every row from all its candidates, or None."""
    if not all("answers" in row for row in rows):
        return None
    for rule in _VOTES.get(strategy, ()):
        if all(vote(_candidates(row), rule)[0] == row["pred"] for row in rows):
            return rule
    return None


def _candidates(row: Row) -> list[Candidate]:
    """A row's candidates, with the fields that a vote uses; answers that may not vote are null in a row."""
    pairs = zip(row["answers"], row["agg_scores"], strict=True)
    return [Candidate("", answer, "eos", (), score or 0.0, 0, ()) for answer, score in pairs]


def is_right(row: Row, answer: str | None) -> bool:
    """Whether an answer of this row equals the gold answer, or a prediction that was graded right."""
    return answer is not None and (answer == row["answer"] or (bool(row["correct"]) and answer == row["pred"]))


def accuracy_at(row: Row, rule: str, num_samples: int) -> float:
    """Mean accuracy (0..1) of a vote over the disjoint runs of `num_samples` consecutive candidates."""
    candidates = _candidates(row)
    starts = range(0, max(len(candidates) - num_samples, 0) + 1, num_samples)
    picks = [vote(candidates[start : start + num_samples], rule)[0] for start in starts]
    return sum(is_right(row, pick) for pick in picks) / len(picks)


def sub_budgets(budget: int) -> list[int]:
    """The powers of two below a budget: 1, 2, 4 ..."""
    return [1 << power for power in range(budget.bit_length()) if 1 << power < budget]


def sample_accuracy(row: Row) -> float | None:
    """Share of a row's completions that are right; None if the row has no answers."""
    answers = row.get("answers")
    return sum(is_right(row, answer) for answer in answers) / len(answers) if answers else None
