"""How likely an answer is right by its verifier score, as measured on leading answers of searches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from engine.errors import UserError
from engine.search import Strategy

Chances = tuple[tuple[float, float], ...]  # (least score, chance from it on); both rise
_LEAST = 20  # answers that a chance is measured on


def fit_chances(scores: Sequence[float], rights: Sequence[bool]) -> Chances:
    """Isotonic regression by pooling adjacent violators (Ayer et al. 1955), over groups of answers of like score.

    A chance of n answers of which k are right is (k + 1) / (n + 2), so that a few right ones make nobody sure.
    """
    pools: list[tuple[float, int, int]] = []  # (least score, right, all)
    for score, found in groupby(sorted(zip(scores, rights, strict=True)), key=lambda pair: pair[0]):
        same = [right for _, right in found]
        pools.append((score, sum(same), len(same)))
        if len(pools) > 1 and pools[-2][2] < _LEAST:
            pools[-2:] = [_joined(*pools[-2:])]
    if len(pools) > 1 and pools[-1][2] < _LEAST:
        pools[-2:] = [_joined(*pools[-2:])]
    rising: list[tuple[float, int, int]] = []
    for pool in pools:
        rising.append(pool)
        while len(rising) > 1 and _chance(rising[-2]) >= _chance(rising[-1]):
            rising[-2:] = [_joined(*rising[-2:])]
    return tuple((pool[0], _chance(pool)) for pool in rising)


def check_chances(chances: Chances) -> None:
    """Raises UserError for what `fit_chances` does not return."""
    columns = [[pair[at] for pair in chances] for at in (0, 1)]
    are_rising = all(one < other for column in columns for one, other in pairwise(column))
    if not are_rising or not all(math.isfinite(score) and 0 <= chance <= 1 for score, chance in chances):
        raise UserError(f"chances must be within 0..1 and rise with their scores, got {list(chances)}")


def score_of(chances: Chances, chance: float) -> float | None:
    """The least score whose chance is that high, None where none is; without chances the chance is the score."""
    return next((score for score, each in chances if each >= chance), None) if chances else chance


def stopping_at(strategy: Strategy, chances: Chances) -> Strategy:
    """The strategy with its `stop`, a chance, as the score that the search compares; without one as it is."""
    if strategy.stop is None:
        return strategy
    score = score_of(chances, strategy.stop)
    # Where even the lowest scores are that often right the score may be 0, and any over it is enough.
    return replace(strategy, stop=None if score is None else max(score, math.ulp(0.0)))


def _joined(one: tuple[float, int, int], other: tuple[float, int, int]) -> tuple[float, int, int]:
    return one[0], one[1] + other[1], one[2] + other[2]


def _chance(pool: tuple[float, int, int]) -> float:
    return (pool[1] + 1) / (pool[2] + 2)
