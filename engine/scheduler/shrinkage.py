"""What to expect of a strategy in a bin: its accuracy there, drawn towards what it does on all bins.

The best of many noisy accuracies is often the luckiest. The model is empirical Bayes over a two-way table: an
accuracy is its bin's, plus the strategy's effect on all bins, plus an effect of its own in this bin, whose variance
over bins is estimated by the method of moments. As strategies are measured on the same problems, the noise is that
of paired differences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shrunk(tables: Sequence[np.ndarray]) -> np.ndarray:
    """(bins, strategies) expected accuracies, of (problems, strategies) who was right in each bin, of shares 0 to 1."""
    means = np.array([table.mean(axis=0) for table in tables])
    num_bins, num_strategies = means.shape
    if num_bins == 1 or num_strategies == 1:
        return means
    effects = means - means.mean(axis=1, keepdims=True)
    weights = np.array([len(table) for table in tables]) / sum(map(len, tables))
    overall = weights @ effects
    own = effects - overall
    noise = np.array([_noise(table) for table in tables])
    scale = 1 - 2 * weights + (weights**2).sum()  # of a bin's variance in `own`, whose mean over bins is taken off
    by_chance = (noise * (1 - 2 * weights) + (weights**2 * noise).sum()).sum()
    variance = max(0.0, ((own**2).mean(axis=1).sum() - by_chance) / scale.sum())
    kept = np.where(noise > 0, variance / np.maximum(variance + noise, 1e-300), 1.0)
    return np.clip(means - effects + overall + kept[:, None] * own, 0.0, 1.0)


def _noise(table: np.ndarray) -> float:
    """The variance of a strategy's mean less that of all strategies, as problems are drawn at random."""
    num_problems, num_strategies = table.shape
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((rest**2).sum()) / (max(1, num_problems - 1) * num_problems * num_strategies)
