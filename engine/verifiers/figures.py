"""How well scores tell right from wrong: ranks, calibration, first wrong steps. Numpy alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import UserError


def auc(scores: Sequence[float], is_good: Sequence[bool]) -> float:
    """Probability that a good one is scored over a bad one, ties half; NaN where either kind is missing."""
    scores, is_good = np.asarray(scores, dtype=float), np.asarray(is_good, dtype=bool)
    num_good, num_bad = int(is_good.sum()), int((~is_good).sum())
    if not num_good or not num_bad:
        return float("nan")
    _, kinds, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[kinds]  # from 1, the mean one of equal scores
    return float((ranks[is_good].sum() - num_good * (num_good + 1) / 2) / (num_good * num_bad))


def auc_within(scores: Sequence[float], is_good: Sequence[bool], groups: Sequence[Hashable]) -> float:
    """The mean over groups of each group's own `auc`, those of one kind left out; NaN where all are.

    Over questions it leaves out what `auc` also rewards, telling easy questions from hard ones: choosing
    among the answers to a question needs only this.
    """
    areas = [area for area, _ in _areas(scores, is_good, groups)]
    return float(np.mean(areas)) if areas else float("nan")


def _areas(scores: Sequence[float], is_good: Sequence[bool], groups: Sequence[Hashable]) -> list[tuple[float, int]]:
    """(`auc`, number of pairs) of each group that has both kinds."""
    scores, is_good = np.asarray(scores, dtype=float), np.asarray(is_good, dtype=bool)
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    of_group = np.array([number[group] for group in groups])
    order = np.argsort(of_group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(of_group))[:-1]) if len(order) else []
    found = [(auc(scores[rows], is_good[rows]), int(is_good[rows].sum() * (~is_good[rows]).sum())) for rows in members]
    return [(area, num_pairs) for area, num_pairs in found if num_pairs]


@dataclass(frozen=True)
class FirstWrongArea:
    """How often a right step is scored over a first wrong one, ties half; NaN where either kind is missing.

    Steps after a first wrong one are left out: with all that is wrong before them there is nothing to tell apart.
    """

    auc_first_wrong: float  # of pairs to the same question at the same place, which a search chooses among
    first_wrong_pairs: int
    auc_first_wrong_pooled: float  # of any two


def first_wrong_area(
    scores: Sequence[Sequence[float]], places: Sequence[int], questions: Sequence[Hashable]
) -> FirstWrongArea:
    """Of scores per step, and the index of each answer's first wrong step, -1 where there is none."""
    steps = [
        (score, index != place, (question, index))
        for run, place, question in zip(scores, places, questions, strict=True)
        for index, score in enumerate(run if place < 0 else run[: place + 1])
    ]
    values, is_right, groups = zip(*steps, strict=True) if steps else ((), (), ())
    areas = _areas(values, is_right, groups)
    num_pairs = sum(number for _, number in areas)
    area = sum(area * number for area, number in areas) / num_pairs if num_pairs else float("nan")
    return FirstWrongArea(area, num_pairs, auc(values, is_right))


def first_zero(labels: Sequence[float]) -> int:
    """The first wrong step by labels: the index of the first one from which no rollout ended right, -1 for none."""
    return next((index for index, label in enumerate(labels) if label == 0), -1)


def roc_points(scores: Sequence[float], is_good: Sequence[bool]) -> list[tuple[float, float]]:
    """(share of bad ones passed, share of good ones passed) at every threshold, from (0, 0) to (1, 1).

    Raises UserError where either kind is missing.
    """
    scores, is_good = np.asarray(scores, dtype=float), np.asarray(is_good, dtype=bool)
    if is_good.all() or not is_good.any():
        raise UserError(f"a ROC curve needs good and bad ones, got {int(is_good.sum())} good of {len(is_good)}")
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores, which pass together
    good, bad = np.cumsum(is_good[order])[is_last], np.cumsum(~is_good[order])[is_last]
    return [(0.0, 0.0), *((float(b / bad[-1]), float(g / good[-1])) for b, g in zip(bad, good, strict=True))]


@dataclass(frozen=True)
class Bin:
    """The scores of one tenth of the scale."""

    low: float
    high: float
    count: int
    mean_score: float | None  # None where there are none
    share_good: float | None  # the mean label


@dataclass(frozen=True)
class Reliability:
    """Whether scores are shares: of answers scored 0.7, seven in ten ought to be right."""

    bins: tuple[Bin, ...]
    ece: float  # expected calibration error: the mean over scores of |mean score - share good| of their bin
    brier: float  # mean squared distance of score and label


def reliability(scores: Sequence[float], labels: Sequence[float], num_bins: int = 10) -> Reliability:
    """Compares scores within 0..1 with labels, in bins of equal width. A bin includes its lower edge, the last both."""
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    places = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    bins, error = [], 0.0
    for index in range(num_bins):
        mask = places == index
        count, edges = int(mask.sum()), (index / num_bins, (index + 1) / num_bins)
        if not count:
            bins.append(Bin(*edges, 0, None, None))
            continue
        mean, share = float(scores[mask].mean()), float(labels[mask].mean())
        error += count * abs(mean - share)
        bins.append(Bin(*edges, count, mean, share))
    return Reliability(tuple(bins), error / len(scores), float(np.mean((scores - labels) ** 2)))


@dataclass(frozen=True)
class FirstErrors:
    """How often the first step scored below a threshold is the first wrong one."""

    threshold: float
    num_wrong: int  # answers with a wrong step
    num_right: int  # answers without
    found: float  # share of the first whose first wrong step is found exactly
    cleared: float  # share of the others in which no step is below the threshold

    @property
    def f1(self) -> float:
        """The harmonic mean of the two (ProcessBench, Zheng et al. 2024)."""
        total = self.found + self.cleared
        return 2 * self.found * self.cleared / total if total else 0.0


def first_errors(scores: Sequence[Sequence[float]], places: Sequence[int], threshold: float) -> FirstErrors:
    """Compares scores per step with the index of each answer's first wrong step, -1 where there is none."""
    table, places = _padded(scores), np.asarray(places)
    below = table < threshold
    said = np.where(below.any(axis=1), below.argmax(axis=1), -1)
    is_wrong = places >= 0
    hit = said == places
    return FirstErrors(
        threshold,
        int(is_wrong.sum()),
        int((~is_wrong).sum()),
        float(hit[is_wrong].mean()) if is_wrong.any() else float("nan"),
        float(hit[~is_wrong].mean()) if not is_wrong.all() else float("nan"),
    )


def best_threshold(scores: Sequence[Sequence[float]], places: Sequence[int], num_tried: int = 100) -> float:
    """The threshold of the highest F1 among quantiles of all scores; the smallest of several."""
    values = np.unique(np.quantile(np.concatenate([np.asarray(run, dtype=float) for run in scores]), _grid(num_tried)))
    rated = [(first_errors(scores, places, float(value)).f1, float(value)) for value in values]
    return max(rated, key=lambda pair: pair[0])[1]


def _grid(num_tried: int) -> np.ndarray:
    return np.linspace(0, 1, num_tried + 1)


def _padded(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """(answers, most steps), padded with infinity, which is below no threshold."""
    table = np.full((len(scores), max(map(len, scores))), np.inf)
    for row, run in zip(table, scores, strict=True):
        row[: len(run)] = run
    return table
