"""How well scores tell right from wrong: ranks within and over groups. Numpy alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


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
    scores, is_good = np.asarray(scores, dtype=float), np.asarray(is_good, dtype=bool)
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    of_group = np.array([number[group] for group in groups])
    order = np.argsort(of_group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(of_group))[:-1]) if len(order) else []
    areas = [auc(scores[rows], is_good[rows]) for rows in members]
    known = [area for area in areas if not np.isnan(area)]
    return float(np.mean(known)) if known else float("nan")
