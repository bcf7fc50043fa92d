"""Transforms the labels of steps before a verifier is trained on them."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

LABELS = ("soft", "hard")


def pool_labels(rows: Sequence[dict]) -> list[dict]:
    """Rows in which equal prefixes (the same prompt, and the same steps so far) have their mean label.

    The policy's value is a function of the prefix, so the rollouts of all answers that share it measure the same.
    """
    sums: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0])
    for row in rows:
        for place, label in zip(_prefixes(row), row["labels"], strict=True):
            sums[place][0] += label
            sums[place][1] += 1
    return [{**row, "labels": [sums[place][0] / sums[place][1] for place in _prefixes(row)]} for row in rows]


def harden_labels(rows: Sequence[dict], threshold: float) -> list[dict]:
    """Rows with labels 1 where a step's own label, or that of a later step of the answer, is above the threshold.

    With threshold 0 a step is good if any rollout that went through it ended right: those from it, as in
    Math-Shepherd's hard estimation (Wang et al. 2023), and those from the steps after it. On hard questions few
    rollouts end right, and one after a later step is as good a witness.
    """
    return [{**row, "labels": _any_from_here(row["labels"], threshold)} for row in rows]


def _any_from_here(labels: Sequence[float], threshold: float) -> list[float]:
    is_good = [label > threshold for label in reversed(labels)]
    return [float(good) for good in accumulate(is_good, operator.or_)][::-1]


def _prefixes(row: dict) -> list[tuple]:
    texts = row["completions"]
    return [(row["prompt"], *texts[: index + 1]) for index in range(len(texts))]
