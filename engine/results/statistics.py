"""Confidence intervals of accuracies, with numpy only and a fixed seed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

_Z = 1.959964  # of a two-sided 95 % interval
_NUM_RESAMPLES = 2000


def wilson_interval(num_right: float, num_total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion. Raises ValueError without observations."""
    if num_total < 1:
        raise ValueError(f"an interval needs at least one observation, got {num_total}")
    share, z2 = num_right / num_total, _Z * _Z
    middle = (share + z2 / (2 * num_total)) / (1 + z2 / num_total)
    spread = share * (1 - share) / num_total + z2 / (4 * num_total**2)
    half = _Z * max(spread, 0.0) ** 0.5 / (1 + z2 / num_total)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """95 % interval of the mean of values within 0..1; `clusters` gives the problem of each value.

    It is a Wilson interval for values 0 and 1 of distinct problems, else (several seeds of a problem,
    fractions) a bootstrap over problems.
    """
    num_clusters = len(set(clusters))
    if num_clusters == len(values) and all(value in (0, 1) for value in values):
        return wilson_interval(sum(values), num_clusters)
    low, high = bootstrap_interval(values, clusters)
    if low == high:  # all problems are equal: resampling has no spread
        return wilson_interval(float(np.mean(values)) * num_clusters, num_clusters)
    return low, high


def bootstrap_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """95 % percentile interval of the mean, from resampling whole clusters with a fixed seed."""
    if not values:
        raise ValueError("an interval needs at least one observation, got none")
    number = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    members = np.array([number[cluster] for cluster in clusters])
    sums = np.bincount(members, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(members)
    rng = np.random.default_rng(0)
    share = np.full(len(sums), 1 / len(sums))
    num_at_once = max(1, 1_000_000 // len(sums))  # bounds memory to a few MB
    means = []
    for start in range(0, _NUM_RESAMPLES, num_at_once):
        draws = rng.multinomial(len(sums), share, size=min(num_at_once, _NUM_RESAMPLES - start))
        means.append((draws @ sums) / (draws @ sizes))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)
