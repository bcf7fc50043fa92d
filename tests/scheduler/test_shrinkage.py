"""Accuracies that are drawn towards what a strategy does everywhere, and the choice by them."""

import numpy as np

from engine.scheduler.choice import TOLERANCE, pick
from engine.scheduler.shrinkage import shrunk


def chances_of(rng: np.random.Generator, num_bins: int, num_strategies: int, spread: float) -> np.ndarray:
    """(bins, strategies) true accuracies: of the bin, of the strategy, and a little of its own in each bin."""
    ease = np.linspace(0.8, 0.1, num_bins)[:, None]
    effect = rng.normal(0, 0.04, num_strategies)
    return np.clip(ease + effect + rng.normal(0, spread, (num_bins, num_strategies)), 0.01, 0.99)


def tables_of(rng: np.random.Generator, chances: np.ndarray, num_problems: int) -> list[np.ndarray]:
    """Who was right: strategies share half of a problem's luck."""
    tables = []
    for row in chances:
        common = rng.random((num_problems, 1))
        is_shared = rng.random((num_problems, len(row))) < 0.5
        tables.append((np.where(is_shared, common, rng.random((num_problems, len(row)))) < row).astype(float))
    return tables


def gains(spread: float, num_trials: int = 200) -> tuple[float, float, float]:
    """Mean true accuracy of choices by measured accuracies, by shrunk ones, and of the one best overall."""
    rng = np.random.default_rng(0)
    raw, drawn, one = [], [], []
    for _ in range(num_trials):
        chances = chances_of(rng, 5, 9, spread)
        tables = tables_of(rng, chances, 20)
        means = np.array([table.mean(axis=0) for table in tables])
        bins = np.arange(5)
        raw.append(chances[bins, means.argmax(axis=1)].mean())
        drawn.append(chances[bins, shrunk(tables).argmax(axis=1)].mean())
        one.append(chances[:, means.mean(axis=0).argmax()].mean())
    return float(np.mean(raw)), float(np.mean(drawn)), float(np.mean(one))


def test_shrunk_choices_are_better_than_those_by_what_was_measured():
    """Nine strategies, five bins of 20 problems: the luckiest of nine is not the best."""
    raw, drawn, _ = gains(spread=0.01)
    assert drawn > raw + 0.01


def test_where_bins_differ_they_are_told_apart():
    raw, drawn, one = gains(spread=0.2)
    assert drawn > one + 0.05
    assert drawn > raw - 0.003


def test_the_variance_of_a_bin_decides_how_much_is_kept():
    """Without noise everything is kept; with nothing but noise the strategy's effect on all bins is expected."""
    same = [np.tile([1.0, 0.0], (10, 1)), np.tile([0.0, 1.0], (10, 1))]
    assert shrunk(same).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    rng = np.random.default_rng(1)
    noise = [(rng.random((30, 4)) < 0.5).astype(float) for _ in range(6)]
    means, found = np.array([table.mean(axis=0) for table in noise]), shrunk(noise)
    of_bins = means.mean(axis=1, keepdims=True)
    assert (found - of_bins).std() < 0.6 * (means - of_bins).std()
    assert np.allclose(found.mean(axis=1), of_bins[:, 0]), "a bin keeps its own accuracy"


def test_one_bin_or_one_strategy_stays_as_it_was_measured():
    table = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert shrunk([table]).tolist() == [[1.0, 0.0, 0.5]]
    assert shrunk([table[:, :1], table[:, 1:2]]).tolist() == [[1.0], [0.0]]


def test_the_cheapest_of_what_is_as_good_is_picked():
    assert pick([("dear", 0.5, 9.0), ("cheap", 0.5 - TOLERANCE / 2, 3.0), ("worse", 0.4, 1.0)]) == "cheap"
    assert pick([("first", 0.5, 3.0), ("second", 0.5, 3.0)]) == "first"
