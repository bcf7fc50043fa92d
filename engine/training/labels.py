"""Transforms the labels of steps before a verifier is trained on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

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
    """Rows with labels 1 above the threshold and else 0.

    With threshold 0 a step is good if any rollout from it ended right (Math-Shepherd's hard estimation, Wang et al.
    2023).
    """
    return [{**row, "labels": [float(label > threshold) for label in row["labels"]]} for row in rows]


def _prefixes(row: dict) -> list[tuple]:
    texts = row["completions"]
    return [(row["prompt"], *texts[: index + 1]) for index in range(len(texts))]
