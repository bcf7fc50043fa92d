"""`ttc calibrate`: which strategy is best at which difficulty and budget, measured into one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import typer

from engine.cli.inputs import MODELS, PROMPTS, check_prompts, checked_config, load_engine
from engine.cli.options import Given, command
from engine.cli.problems import ProblemOptions, find_problems
from engine.cli.strategies import check_verifier_used
from engine.cli.tables import calibration_table
from engine.commands import parse_numbers
from engine.config import EngineConfig, SearchConfig
from engine.errors import UserError
from engine.files import write_atomically
from engine.results.digests import problems_digest
from engine.scheduler import (
    ABSOLUTE_EDGES,
    Assigned,
    Assignment,
    Bins,
    Outcome,
    PilotSamples,
    Predictor,
    can_spend,
    measure,
    members_of,
    parse_strategy,
    read_calibration,
    strategy_label,
)
from engine.search import Strategy

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.results import Journal
    from engine.results.rows import Row
    from engine.types import Problem, SearchResult

_STRATEGIES = "majority,best-of-n,beam:width=2,beam:width=4,rebase,adaptive:vote=majority"
_ORM_STRATEGIES = "majority,best-of-n,adaptive:vote=majority"  # of them what an ORM can judge, or nobody judges


@dataclass(frozen=True)
class CalibrationProblems(ProblemOptions):
    """Which problems are measured on: each needs an answer."""

    problems: str | None = field(default=None, metadata={"argument": True})
    """JSONL file with `problem` and `answer`."""

    split: str = "validation"
    """Of the task, without a file: train, validation, test."""

    limit: int | None = None
    """The first so many problems; of a task 100."""


@dataclass(frozen=True)
class GridOptions:
    """What is measured, and how problems are sorted by difficulty."""

    strategies: str = _STRATEGIES
    """With commas between; options after colons, as in beam:width=2:vote=naive."""

    budgets: str = "4,8,16"
    """Generations per problem, e.g. 4,8,16."""

    predictor: str = "agreement"
    """agreement of samples, their verifier score, or oracle (pass@1)."""

    pilot: int = 4
    """Samples that difficulty is predicted from."""

    reuse: bool | None = None
    """Whether they count in the budget and vote; by default yes, but for the oracle's."""

    bins: str = "quintiles"
    """quintiles, quantiles:8, absolute (0.1,0.5), one, or rising edges of one's own."""

    min_per_bin: int = 10
    """Problems that a bin must hold; smaller quantiles are joined."""


@dataclass(frozen=True)
class Output:
    """Where the calibration goes."""

    out: str = "out/calibration.json"
    """The calibration, one readable JSON file."""

    overwrite: bool = field(default=False, metadata={"flags": "--overwrite"})
    """Drop what --out holds."""


@command(
    {
        "Problems": "task split limit problem_column answer_column",
        "Prompts": PROMPTS,
        "Grid": "strategies budgets",
        "Difficulty": "predictor pilot reuse bins min_per_bin",
        "Search": "agg_strategy verifier temperature top_p top_k min_p max_tokens seed",
        "Models": MODELS,
        "Output": "out overwrite",
    }
)
def calibrate(
    given: Given,
    source: CalibrationProblems,
    models: EngineConfig,
    config: SearchConfig,
    options: GridOptions,
    output: Output,
) -> None:
    """Measures strategies and budgets by difficulty, for `ttc search --strategy compute-optimal`.

    Every problem is searched by every strategy at every budget. A killed run goes on where it
    stopped; another --bins or --min-per-bin uses what has been measured again.
    """
    from engine.cli.runs import check_out, run_rows

    check_out(output.out, source.problems, models.few_shot)
    check_verifier_used(config.verifier, given)
    if config.verifier == "orm" and "strategies" not in given:
        options = replace(options, strategies=_ORM_STRATEGIES)
    grid = build_grid(options, config.verifier)
    sampled = PilotSamples(grid.predictor, grid.is_scored, grid.revises)
    problems, origins = find_problems(source, models.task, given)
    config = replace(config, budget=max(budget for _, budget in grid.cells))
    config = checked_config(config, models.task, sampled)
    engine, _ = load_engine(models, sampled, config.verifier, "--strategies")
    _check_answers(problems, origins)
    check_prompts(engine, problems, origins)
    conditions = engine.conditions(sampled, config)

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        yield from measure_rows(engine, problems, grid, todo, config)

    def write(journal: Journal) -> None:
        outcomes = [_outcome(grid, index, row, len(problems)) for index, row in sorted(journal.done.items())]
        eases = {outcome.problem: outcome.ease for outcome in outcomes}
        calibration = measure(
            outcomes,
            conditions=conditions,
            problems=f"{source.problems or f'{models.task}/{source.split}'}, {len(problems)} problems",
            predictor=grid.predictor,
            bins=make_bins(grid, list(eases.values())),
            min_per_bin=grid.min_per_bin,
        )
        write_atomically(output.out, calibration.to_json().encode())

    depends_on = _depends_on(models, grid, problems, conditions, config.seed)
    closing_line = run_rows(
        output.out,
        depends_on,
        make_rows,
        num_total=len(problems) * len(grid.cells),
        label="searches",
        overwrite=output.overwrite,
        write=write,
    )
    typer.echo(f"{calibration_table(read_calibration(output.out))}\n{closing_line}")


@dataclass(frozen=True)
class Grid:
    """What is measured: every cell on every problem."""

    predictor: Predictor
    bins: str
    min_per_bin: int
    cells: tuple[tuple[Strategy, int], ...]  # (strategy, budget)

    @property
    def is_scored(self) -> bool:
        return self.predictor.name == "score" or any(strategy.is_scored for strategy, _ in self.cells)

    @property
    def revises(self) -> bool:
        return any(strategy.revises for strategy, _ in self.cells)


def build_grid(options: GridOptions, verifier: str) -> Grid:
    """The cells that can be spent. Raises UserError for a strategy that none of the budgets suits."""
    is_reused = options.predictor != "oracle" if options.reuse is None else options.reuse
    predictor = Predictor(options.predictor, options.pilot, is_reused)
    strategies = dict.fromkeys(map(parse_strategy, options.strategies.split(",")))
    for strategy in strategies:
        if verifier == "orm" and strategy.is_scored and strategy.stop_at_step:
            raise UserError(f"--verifier orm judges whole answers, and {strategy_label(strategy)} scores steps")
    budgets = parse_numbers("budgets", options.budgets, int)
    if min(budgets) < max(1, predictor.num_spent):
        least = f"at least {predictor.num_spent}, the samples of the pilot" if is_reused else "at least 1"
        raise UserError(f"budgets must be {least}, got {options.budgets!r}")
    if is_reused:
        budgets.append(predictor.num_samples)  # where every problem's curve starts
    cells = [
        (strategy, budget)
        for strategy in strategies
        for budget in sorted(set(budgets))
        if can_spend(strategy, budget - predictor.num_spent)
    ]
    for strategy in strategies:
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


def measure_rows(
    engine: Engine, problems: list[Problem], grid: Grid, todo: list[int], config: SearchConfig
) -> Iterator[tuple[int, Row]]:
    """(position, row) of the searches that are still to be done, cell by cell.

    All samples are drawn first, so that bins with too few problems are refused before the long part.
    """
    predictor = grid.predictor
    pilot = replace(config, budget=predictor.num_samples)
    samples = engine.search(problems, PilotSamples(predictor, grid.is_scored), config=pilot)
    eases = [predictor.value(each) for each in samples]
    members_of(make_bins(grid, eases), dict(enumerate(eases)), grid.min_per_bin)
    for number, (strategy, budget) in enumerate(grid.cells):
        chosen = [index - number * len(problems) for index in todo if index // len(problems) == number]
        starts = samples if predictor.is_reused else [None] * len(problems)
        plans = {problems[index].id: Assignment(strategy, budget, starts[index]) for index in chosen}
        for llm in filter(None, (engine.policy, engine.prm, engine.orm, engine.reviser)):
            llm.clear_cache()  # a strategy must not live on what the one before it has paid for
        each = replace(config, budget=budget)
        found = engine.search_iter([problems[index] for index in chosen], Assigned(plans), config=each)
        for position, result in found:
            index = chosen[position]
            row = _row(result, strategy, eases[index])
            if not predictor.is_reused:  # what a search would have paid for its prediction
                row["tokens"] += _num_tokens(samples[index])
                row["flops"] += samples[index].ledger.total_flops
            yield number * len(problems) + index, row


def _row(result: SearchResult, strategy: Strategy, ease: float) -> Row:
    return {
        "id": result.problem.id,
        "seed": result.seed,
        "strategy": strategy_label(strategy),
        "budget": result.budget,
        "ease": ease,
        "correct": bool(result.correct),
        "generations": result.num_generations,
        "tokens": _num_tokens(result),
        "flops": result.ledger.total_flops,
    }


def _num_tokens(result: SearchResult) -> int:
    """Tokens that went through a model: all but those read from the cache."""
    return sum(count for purpose, count in result.ledger.tokens.items() if purpose != "cached")


def _outcome(grid: Grid, index: int, row: Row, num_problems: int) -> Outcome:
    number, problem = divmod(index, num_problems)
    strategy, budget = grid.cells[number]
    counts = {name: row[name] for name in ("generations", "tokens", "flops")}
    return Outcome(problem, row["ease"], strategy, budget, row["correct"], **counts)


def _check_answers(problems: list[Problem], origins: list[str]) -> None:
    for problem, origin in zip(problems, origins, strict=True):
        if problem.answer is None:
            raise UserError(f"{origin}: a calibration needs the answer of every problem, got None")


def _depends_on(
    models: EngineConfig, grid: Grid, problems: Sequence[Problem], conditions: dict[str, object], seed: int
) -> dict[str, object]:
    """All that the rows depend on; bins only sort them."""
    return {
        "problems": problems_digest(problems),
        "num_problems": len(problems),
        "conditions": conditions,
        "predictor": asdict(grid.predictor),
        "cells": [f"{strategy_label(strategy)}@{budget}" for strategy, budget in grid.cells],
        "seed": seed,
        "dtype": models.dtype,
        "device": models.device,
    }
