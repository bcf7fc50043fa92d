"""Picks among strategies whose accuracies are known within an error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

TOLERANCE = 0.005  # of accuracy, which is given up for fewer FLOPs: less than any calibration can tell apart

Choice = TypeVar("Choice")


def pick(choices: Iterable[tuple[Choice, float, float]]) -> Choice:
    """The cheapest, and of equals the first, of the (choice, accuracy, FLOPs) that are as good as the best."""
    found = list(choices)
    best = max(accuracy for _, accuracy, _ in found)
    return min((each for each in found if each[1] >= best - TOLERANCE), key=lambda each: each[2])[0]
