"""What a calibration measures: the strategies and budgets of its grid, and how problems are sorted by difficulty."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.commands import parse_numbers
from engine.errors import UserError
from engine.scheduler import ABSOLUTE_EDGES, Bins, Predictor, can_spend, parse_strategy, strategy_label
from engine.search import Strategy

_UNSCORED = "majority,adaptive:vote=majority"
_ANSWERS = "best-of-n"  # what an ORM can judge too
_STEPS = "beam:width=2,beam:width=4,beam:width=0,dvts,rebase"
_REVISIONS = "revisions:parallel=1,revisions:parallel=4"
_STOP = 0.95  # chance at which all that are scored are measured a second time


@dataclass(frozen=True)
class GridOptions:
    """What is measured, and how problems are sorted by difficulty."""

    strategies: str | None = None
    """With commas between, as beam:width=2:stop=0.95; by default all that the models can run, also with stop."""

    budgets: str = "4,8,16"
    """Generations per problem, e.g. 4,8,16."""

    predictor: str = "agreement"
    """agreement of samples, their verifier score, probe (of the policy's prompt state), probe+score, or oracle."""

    pilot: int = 4
    """Samples that difficulty is predicted from; a probe alone draws none."""

    reuse: bool | None = None
    """Whether they count in the budget and vote; by default yes, but for the oracle's."""

    bins: str = "quintiles"
    """quintiles, quantiles:8, absolute (0.1,0.5), one, or rising edges of one's own."""

    min_per_bin: int = 10
    """Problems that a bin must hold; smaller quantiles are joined."""


@dataclass(frozen=True)
class Grid:
    """What is measured: every cell on every problem."""

    predictor: Predictor
    bins: str
    min_per_bin: int
    cells: tuple[tuple[Strategy, int], ...]  # (strategy, budget)

    @property
    def is_scored(self) -> bool:
        return self.predictor.reads_scores or any(strategy.is_scored for strategy, _ in self.cells)

    @property
    def revises(self) -> bool:
        return any(strategy.revises for strategy, _ in self.cells)


def default_strategies(verifier: str, has_reviser: bool) -> list[Strategy]:
    """All kinds that the models can run, and those that are scored once more with a chance at which they stop."""
    scored = [_ANSWERS, *([] if verifier == "orm" else [_STEPS]), *([_REVISIONS] if has_reviser else [])]
    plain = [parse_strategy(each) for each in ",".join([_UNSCORED, *scored]).split(",")]
    return [*plain, *(replace(each, stop=_STOP) for each in plain if each.is_scored)]


def build_grid(options: GridOptions, verifier: str, *, has_reviser: bool = False) -> Grid:
    """The cells that can be spent; those that stop come last, as their chances are measured on the others.

    Raises UserError for a strategy that was named and that none of the budgets suits.
    """
    is_reused = options.predictor != "oracle" if options.reuse is None else options.reuse
    predictor = Predictor(options.predictor, 0 if options.predictor == "probe" else options.pilot, is_reused)
    if options.strategies is None:
        named = default_strategies(verifier, has_reviser)
    else:
        named = list(map(parse_strategy, options.strategies.split(",")))
    strategies = sorted(dict.fromkeys(named), key=lambda each: each.stop is not None)
    for strategy in strategies:
        if verifier == "orm" and strategy.is_scored and strategy.stop_at_step:
            raise UserError(f"--verifier orm judges whole answers, and {strategy_label(strategy)} scores steps")
    budgets = parse_numbers("budgets", options.budgets, int)
    if min(budgets) < max(1, predictor.num_spent):
        least = f"at least {predictor.num_spent}, the samples of the pilot" if is_reused else "at least 1"
        raise UserError(f"budgets must be {least}, got {options.budgets!r}")
    if predictor.num_spent:
        budgets.append(predictor.num_samples)  # where every problem's curve starts
    cells = [
        (strategy, budget)
        for strategy in strategies
        for budget in sorted(set(budgets))
        if can_spend(strategy, budget - predictor.num_spent)
    ]
    for strategy in strategies if options.strategies is not None else ():
        if not any(strategy == each for each, _ in cells):
            after = f" after the {predictor.num_spent} of the pilot" if is_reused else ""
            raise UserError(f"{strategy_label(strategy)} can spend none of the budgets{after}, got {options.budgets!r}")
    grid = Grid(predictor, options.bins, options.min_per_bin, tuple(cells))
    make_bins(grid, [0.0])  # refuses edges that are no edges before anything is searched
    return grid


def make_bins(grid: Grid, eases: list[float]) -> Bins:
    """The bins that the grid names. Raises UserError for edges that do not rise, or no number of quantiles."""
    name, is_counted, count = grid.bins.partition(":")
    if name == "quantiles" and is_counted:
        if not count.isdecimal():
            raise UserError(f"bins must be quantiles:N with a whole number N, got {grid.bins!r}")
        return Bins.quantiles(eases, int(count), least=grid.min_per_bin)
    if grid.bins == "quintiles":
        return Bins.quantiles(eases, least=grid.min_per_bin)
    named = {"absolute": ABSOLUTE_EDGES, "one": ()}
    return Bins(named[grid.bins] if grid.bins in named else tuple(parse_numbers("bins", grid.bins, float)))
