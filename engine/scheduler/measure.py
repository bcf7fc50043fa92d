"""Makes a calibration from the outcomes of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from engine.errors import UserError
from engine.scheduler.calibration import Calibration, Cell, Verdict
from engine.scheduler.difficulty import Bins, Predictor
from engine.search import Strategy


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
) -> Calibration:
    """Cells by bin, strategy and budget, and the accuracy of choosing by bin under cross-validation.

    Raises UserError for a bin with fewer problems than `min_per_bin`.
    """
    members = members_of(bins, {outcome.problem: outcome.ease for outcome in outcomes}, min_per_bin)
    cells: dict[tuple[int, Strategy, int], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda each: each.problem):
        cells.setdefault((bins.index(outcome.ease), outcome.strategy, outcome.budget), []).append(outcome)
    budgets = tuple(sorted({outcome.budget for outcome in outcomes}))
    return Calibration(
        conditions=conditions,
        problems=problems,
        predictor=predictor,
        bins=bins,
        num_per_bin=tuple(map(len, members)),
        budgets=budgets,
        cells=tuple(_cell(*key, group) for key, group in sorted(cells.items(), key=lambda item: item[0][::2])),
        verdicts=tuple(cross_validate(outcomes, bins, budget) for budget in budgets),
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
    """The accuracy of choosing by bin at a budget, as `held_out` measures it."""
    chosen, fixed = held_out(outcomes, bins, budget)
    return Verdict(
        budget=budget,
        num_problems=len(chosen),
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
    caution: float = 0.0,
) -> tuple[list[Outcome], list[Outcome]]:
    """Two folds of every bin, by turns: strategies are chosen on the one and measured on the other.

    Returns one outcome per problem of the strategy that was best in its bin, and one of the one strategy
    for all bins, which is chosen and measured on the same folds, so that the two can be compared. With `caution`
    a bin departs from the one for all only where its own best is ahead by this number of standard errors of
    the paired difference (the one-standard-error rule of Breiman et al. 1984 where it is 1; 0 is the paper's
    choice). `folds` gives 0 or 1 by problem, where turns are not to be taken.
    """
    at_budget = [outcome for outcome in outcomes if outcome.budget == budget]
    folds = _folds(at_budget, bins) if folds is None else folds
    strategies = list(dict.fromkeys(outcome.strategy for outcome in at_budget))
    chosen: list[Outcome] = []
    fixed: list[Outcome] = []
    for held_out in (0, 1):
        seen = [each for each in at_budget if folds[each.problem] != held_out]
        unseen = [each for each in at_budget if folds[each.problem] == held_out]
        one_for_all = _best(strategies, seen)
        fixed += [each for each in unseen if each.strategy == one_for_all]
        for index in range(bins.count):
            own = [each for each in seen if bins.index(each.ease) == index]
            best = _best(strategies, own)
            if caution and not _is_ahead(best, one_for_all, own, caution):
                best = one_for_all
            chosen += [each for each in unseen if each.strategy == best and bins.index(each.ease) == index]
    return chosen, fixed


def _folds(outcomes: Sequence[Outcome], bins: Bins) -> dict[int, int]:
    """0 or 1 for every problem, by turns inside each bin."""
    counts = [0] * bins.count
    folds: dict[int, int] = {}
    for outcome in sorted(outcomes, key=lambda each: each.problem):
        if outcome.problem not in folds:
            index = bins.index(outcome.ease)
            folds[outcome.problem] = counts[index] % 2
            counts[index] += 1
    return folds


def _best(strategies: Sequence[Strategy], outcomes: Sequence[Outcome]) -> Strategy:
    """The strategy of the greatest accuracy; equals go to fewer FLOPs, then to the first."""

    def merit(strategy: Strategy) -> tuple[float, float]:
        own = [each for each in outcomes if each.strategy == strategy]
        return _mean([each.is_right for each in own]), -_mean([each.flops for each in own])

    return max(strategies, key=merit)


def _is_ahead(strategy: Strategy, other: Strategy, outcomes: Sequence[Outcome], caution: float) -> bool:
    """Whether its mean lies `caution` standard errors of the difference, paired by problem, over the other's."""
    ours, theirs = (
        {each.problem: each.is_right for each in outcomes if each.strategy == side} for side in (strategy, other)
    )
    gains = [float(ours[problem]) - theirs[problem] for problem in ours.keys() & theirs.keys()]
    if len(gains) < 2:
        return False
    return _mean(gains) >= caution * stdev(gains) / len(gains) ** 0.5


def _cell(bin_index: int, strategy: Strategy, budget: int, group: Sequence[Outcome]) -> Cell:
    return Cell(
        bin=bin_index,
        strategy=strategy,
        budget=budget,
        num_right=sum(each.is_right for each in group),
        num_problems=len(group),
        generations=_mean([each.generations for each in group]),
        tokens=_mean([each.tokens for each in group]),
        flops=_mean([each.flops for each in group]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
