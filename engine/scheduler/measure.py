"""Makes a calibration from the outcomes of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from engine.errors import UserError
from engine.scheduler.calibration import Calibration, Cell, Verdict
from engine.scheduler.chance import Chances
from engine.scheduler.choice import pick
from engine.scheduler.difficulty import Bins, Predictor
from engine.search import Strategy

_NUM_SPLITS = 20


@dataclass(frozen=True)
class Outcome:
    """One search of one problem."""

    problem: int  # position in the input
    ease: float  # what the predictor said
    strategy: Strategy  # or any other hashable name of one, for `held_out`
    budget: int
    is_right: float  # a bool, or the share of several searches that were right
    generations: int  # spent
    tokens: int  # that went through a model
    flops: int


def measure(
    outcomes: Sequence[Outcome],
    *,
    conditions: Mapping[str, object],
    problems: str,
    predictor: Predictor,
    bins: Bins,
    min_per_bin: int = 10,
    chances: Chances = (),
) -> Calibration:
    """Cells by bin, strategy and budget, and the accuracy of choosing by bin under cross-validation.

    At every budget each strategy has searched the same problems.

    Raises UserError for a bin with fewer problems than `min_per_bin`.
    """
    members = members_of(bins, {outcome.problem: outcome.ease for outcome in outcomes}, min_per_bin)
    cells: dict[tuple[int, Strategy, int], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda each: each.problem):
        cells.setdefault((bins.index(outcome.ease), outcome.strategy, outcome.budget), []).append(outcome)
    budgets = tuple(sorted({outcome.budget for outcome in outcomes}))
    at_budget = {budget: [each for each in outcomes if each.budget == budget] for budget in budgets}
    expected = {budget: _expected(found, bins) for budget, found in at_budget.items()}
    return Calibration(
        conditions=conditions,
        problems=problems,
        predictor=predictor,
        bins=bins,
        num_per_bin=tuple(map(len, members)),
        budgets=budgets,
        cells=tuple(
            _cell(*key, group, expected[key[2]][key[:2]])
            for key, group in sorted(cells.items(), key=lambda item: item[0][::2])
        ),
        verdicts=tuple(cross_validate(outcomes, bins, budget) for budget in budgets),
        chances=chances,
    )


def members_of(bins: Bins, eases: Mapping[int, float], min_per_bin: int) -> list[list[int]]:
    """The problems of every bin, in order. Raises UserError for a bin with fewer than `min_per_bin`."""
    if min_per_bin < 2:
        raise UserError(f"a bin needs at least 2 problems, one for each fold, got min_per_bin {min_per_bin}")
    members: list[list[int]] = [[] for _ in range(bins.count)]
    for problem in sorted(eases):
        members[bins.index(eases[problem])].append(problem)
    for index, found in enumerate(members):
        if len(found) < min_per_bin:
            raise UserError(
                f"difficulty {bins.describe(index)} holds {len(found)} of {len(eases)} problems, at least "
                f"{min_per_bin} are needed: calibrate on more problems, or in fewer bins"
            )
    return members


def cross_validate(outcomes: Sequence[Outcome], bins: Bins, budget: int) -> Verdict:
    """The accuracy of choosing by bin at a budget, as `held_out` measures it, over `_NUM_SPLITS` splits.

    With bins of 60 problems two splits differ by some 2 points, more than choosing by bin is often worth.
    """
    at_budget = [outcome for outcome in outcomes if outcome.budget == budget]
    splits = [held_out(at_budget, bins, budget, folds=_folds(at_budget, bins, seed)) for seed in range(_NUM_SPLITS)]
    chosen, fixed = ([outcome for split in splits for outcome in split[side]] for side in (0, 1))
    return Verdict(
        budget=budget,
        num_problems=len(splits[0][0]),
        compute_optimal=_mean([each.is_right for each in chosen]),
        best_fixed=_mean([each.is_right for each in fixed]),
        flops=_mean([each.flops for each in chosen]),
        best_fixed_flops=_mean([each.flops for each in fixed]),
    )


def held_out(
    outcomes: Sequence[Outcome],
    bins: Bins,
    budget: int,
    *,
    folds: Mapping[int, int] | None = None,
) -> tuple[list[Outcome], list[Outcome]]:
    """Two folds of every bin: strategies are chosen on the one and measured on the other.

    Returns one outcome per problem of the strategy that was best in its bin, and one of the one strategy
    for all bins, which is chosen and measured on the same folds, so that the two can be compared. The best of a bin
    is that of the greatest shrunk accuracy. `folds` gives 0 or 1 by problem; by default they go by turns.
    """
    at_budget = [outcome for outcome in outcomes if outcome.budget == budget]
    folds = _folds(at_budget, bins) if folds is None else folds
    strategies = list(dict.fromkeys(outcome.strategy for outcome in at_budget))
    chosen: list[Outcome] = []
    fixed: list[Outcome] = []
    for held_out in (0, 1):
        seen = [each for each in at_budget if folds[each.problem] != held_out]
        unseen = [each for each in at_budget if folds[each.problem] == held_out]
        one_for_all = _best(_expected(seen, Bins()), seen, strategies)
        fixed += [each for each in unseen if each.strategy == one_for_all]
        expected = _expected(seen, bins)
        for index in range(bins.count):
            own = [each for each in seen if bins.index(each.ease) == index]
            best = _best(expected, own, strategies, index)
            chosen += [each for each in unseen if each.strategy == best and bins.index(each.ease) == index]
    return chosen, fixed


def _folds(outcomes: Sequence[Outcome], bins: Bins, seed: int = 0) -> dict[int, int]:
    """0 or 1 for every problem, by turns inside each bin; by turns in an order of its own with every seed but 0."""
    counts = [0] * bins.count
    folds: dict[int, int] = {}
    ranked = sorted(outcomes, key=lambda each: each.problem)
    if seed:
        Random(seed).shuffle(ranked)
    for outcome in ranked:
        if outcome.problem not in folds:
            index = bins.index(outcome.ease)
            folds[outcome.problem] = counts[index] % 2
            counts[index] += 1
    return folds


def _best(
    expected: Mapping[tuple[int, Strategy], float],
    outcomes: Sequence[Outcome],
    strategies: Sequence[Strategy],
    bin_index: int = 0,
) -> Strategy:
    """The strategy to choose in a bin, by what is expected there and what it cost in these outcomes."""
    flops = {each: _mean([seen.flops for seen in outcomes if seen.strategy == each]) for each in strategies}
    return pick((each, expected.get((bin_index, each), 0.0), flops[each]) for each in strategies)


def _expected(outcomes: Sequence[Outcome], bins: Bins) -> dict[tuple[int, Strategy], float]:
    """The shrunk accuracies by bin and strategy, of searches of the same problems at one budget."""
    import numpy as np  # not where a command line is only parsed

    from engine.scheduler.shrinkage import shrunk

    strategies = list(dict.fromkeys(each.strategy for each in outcomes))
    rights: list[dict[int, dict[Strategy, float]]] = [{} for _ in range(bins.count)]
    for each in outcomes:
        rights[bins.index(each.ease)].setdefault(each.problem, {})[each.strategy] = float(each.is_right)
    found = [index for index in range(bins.count) if rights[index]]
    if not found:
        return {}
    tables = [np.array([[row[each] for each in strategies] for row in rights[index].values()]) for index in found]
    return {
        (index, strategy): float(value)
        for index, row in zip(found, shrunk(tables), strict=True)
        for strategy, value in zip(strategies, row, strict=True)
    }


def _cell(bin_index: int, strategy: Strategy, budget: int, group: Sequence[Outcome], expected: float) -> Cell:
    return Cell(
        bin=bin_index,
        strategy=strategy,
        budget=budget,
        num_right=sum(each.is_right for each in group),
        num_problems=len(group),
        generations=_mean([each.generations for each in group]),
        tokens=_mean([each.tokens for each in group]),
        flops=_mean([each.flops for each in group]),
        shrunk=expected,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
