"""A probe: ease as a linear function of the policy's hidden state at the end of the prompt, and perhaps of a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.errors import UserError

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]  # from features and eases to weights
_NUM_FOLDS = 5
_LEAST = 3  # problems: without one of them, and of the others one more, something is left to fit to
_PENALTIES = np.logspace(-2, 5, 22)  # of ridge regression, over features of variance 1


def check_problems(number: int) -> None:
    """Raises UserError for too few problems."""
    if number < _LEAST:
        raise UserError(f"a probe needs at least {_LEAST} problems that it is fitted to, got {number}")


def fit_probe(features: np.ndarray, eases: np.ndarray, has_score: bool) -> tuple[tuple[float, ...], np.ndarray]:
    """The weights (the constant first), and what probes of the other folds say of every problem.

    By `features`, (problems, H), or (problems, H + 1) where the last one is a score. The state alone is fitted by ridge
    regression; a score is set beside the prediction of that, not beside H features of which each could drown it.
    Raises UserError for too few problems.
    """
    check_problems(len(eases))
    held = _cross_fitted(lambda *seen: _fit(*seen, has_score), features, eases)
    return tuple(map(float, _fit(features, eases, has_score))), held


def apply(weights: Sequence[float], features: np.ndarray) -> np.ndarray:
    """The predicted eases of features, (problems, n)."""
    return weights[0] + features @ np.asarray(weights[1:])


def _cross_fitted(fit: Fit, features: np.ndarray, eases: np.ndarray) -> np.ndarray:
    """Of every problem the prediction by weights that were fitted without its fold."""
    folds, held = np.arange(len(eases)) % _NUM_FOLDS, np.empty(len(eases))
    for fold in np.unique(folds):
        seen, unseen = folds != fold, folds == fold
        held[unseen] = apply(fit(features[seen], eases[seen]), features[unseen])
    return held


def _fit(features: np.ndarray, eases: np.ndarray, has_score: bool) -> np.ndarray:
    if not has_score:
        return _ridge(features, eases)
    states, score = features[:, :-1], features[:, -1]
    weights, held = _ridge(states, eases), _cross_fitted(_ridge, states, eases)
    beside = np.column_stack([np.ones(len(eases)), held, score])
    constant, of_state, of_score = np.linalg.lstsq(beside, eases, rcond=None)[0]
    return np.concatenate([[constant + of_state * weights[0]], of_state * weights[1:], [of_score]])


def _ridge(features: np.ndarray, eases: np.ndarray) -> np.ndarray:
    """Ridge regression with the penalty whose leave-one-out error is least."""
    means, scales = features.mean(axis=0), features.std(axis=0)
    scales = np.where(scales > 1e-6, scales, np.inf)  # a feature that does not vary gets no weight
    left, sizes, right = np.linalg.svd((features - means) / scales, full_matrices=False)
    inside = left.T @ (eases - eases.mean())

    def error(penalty: float) -> float:
        kept = sizes**2 / (sizes**2 + penalty)
        leverage = 1 / len(eases) + (left**2) @ kept
        return float((((eases - eases.mean() - left @ (kept * inside)) / np.maximum(1 - leverage, 1e-9)) ** 2).sum())

    penalty = min(_PENALTIES, key=error)
    weights = (right.T @ (sizes / (sizes**2 + penalty) * inside)) / scales
    return np.concatenate([[eases.mean() - means @ weights], weights])
