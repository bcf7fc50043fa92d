"""`ttc calibrate`: which strategy is best at which difficulty and budget, measured into one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import typer

from engine.cli.grid import Grid, GridOptions, build_grid, make_bins
from engine.cli.inputs import MODELS, PROMPTS, check_prompts, checked_config, load_engine
from engine.cli.options import Given, command
from engine.cli.problems import ProblemOptions, find_problems
from engine.cli.replicas import REPLICAS, ReplicaOptions
from engine.cli.strategies import check_verifier_used
from engine.cli.tables import calibration_table
from engine.config import ENDPOINT, EngineConfig, SearchConfig, is_endpoint
from engine.errors import UserError
from engine.files import write_atomically
from engine.loading import clear_caches
from engine.results.digests import problems_digest
from engine.scheduler import (
    Assigned,
    Assignment,
    Bins,
    Calibration,
    Chances,
    Outcome,
    PilotSamples,
    Predictor,
    fit_chances,
    measure,
    members_of,
    read_calibration,
    stopping_at,
    strategy_label,
)
from engine.scheduler.probe import check_problems, fit_probe
from engine.search import Strategy

if TYPE_CHECKING:
    from engine.distributed import Replicas
    from engine.engine import Engine
    from engine.results import Journal
    from engine.results.rows import Row
    from engine.types import Problem, SearchResult

    Search = Callable[..., Iterable[tuple[int, Row]]]


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
        "Cluster": REPLICAS,
        "Output": "out overwrite",
    }
)
def calibrate(
    given: Given,
    source: CalibrationProblems,
    models: EngineConfig,
    config: SearchConfig,
    options: GridOptions,
    cluster: ReplicaOptions,
    output: Output,
) -> None:
    """Measures strategies and budgets by difficulty, for `ttc search --strategy compute-optimal`.

    Every problem is searched by every strategy at every budget. A killed run goes on where it
    stopped; another --bins or --min-per-bin uses what has been measured again.
    """
    from engine.cli.outputs import RunOutput
    from engine.cli.runs import check_out, run_rows

    check_out(output.out, source.problems, models.few_shot)
    _check(given, models, config, options)
    replicas = cluster.asked(given, models)
    grid = build_grid(options, config.verifier, has_reviser=_has_reviser(models))
    sampled = PilotSamples(grid.predictor, grid.is_scored, grid.revises)
    problems, origins = find_problems(source, models.task, given)
    config = replace(config, budget=max(budget for _, budget in grid.cells))
    config = checked_config(config, models.task, sampled)
    engine, _ = load_engine(models, sampled, config.verifier, "--strategies")
    _check_answers(problems, origins)
    check_prompts(engine, problems, origins)
    conditions = engine.conditions(sampled, config)

    rows = RowsSoFar(len(problems) * len(grid.cells))

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        with _searching(engine, models, replicas) as search:
            yield from measure_rows(engine, problems, grid, todo, config, rows, search)

    named = f"{source.problems or f'{models.task}/{source.split}'}, {len(problems)} problems"

    def write(journal: Journal) -> None:
        calibration = _calibration(grid, journal.done, len(problems), conditions, named)
        write_atomically(output.out, calibration.to_json().encode())

    depends_on = _depends_on(models, grid, problems, conditions, config.seed)
    closing_line = run_rows(
        RunOutput(output.out, output.overwrite),
        depends_on,
        make_rows,
        num_total=rows.num_wanted,
        label="searches",
        write=write,
        selection=rows,
    )
    typer.echo(f"{calibration_table(read_calibration(output.out))}\n{closing_line}")


def _calibration(
    grid: Grid, rows: Mapping[int, Row], num_problems: int, conditions: Mapping[str, object], problems: str
) -> Calibration:
    """What the rows of all cells say; `problems` names what was searched."""
    predictor, eases = _fitted(grid, rows, num_problems)
    return measure(
        [_outcome(grid, index, row, eases) for index, row in sorted(rows.items())],
        conditions=conditions,
        problems=problems,
        predictor=predictor,
        bins=make_bins(grid, eases),
        min_per_bin=grid.min_per_bin,
        chances=_chances(grid, rows, num_problems),
    )


def _check(given: Given, models: EngineConfig, config: SearchConfig, options: GridOptions) -> None:
    """Raises UserError for options that do not go together."""
    check_verifier_used(config.verifier, given)
    if options.predictor == "probe" and "pilot" in given:
        raise UserError(f"--pilot has no effect with --predictor probe, which draws no samples, got {options.pilot}")
    if is_endpoint(models.policy):
        raise UserError(f"strategies are compared by their FLOPs, which --policy {ENDPOINT}... does not tell")


class RowsSoFar(dict[int, "Row"]):
    """The rows by position, as they are made, for searches that depend on those before them."""

    def __init__(self, num_wanted: int):
        super().__init__()
        self.num_wanted = num_wanted

    @property
    def num_kept(self) -> int:
        return len(self)

    def add(self, position: int, row: Row) -> bool:
        self[position] = row
        return True


@contextmanager
def _searching(engine: Engine, models: EngineConfig, replicas: Replicas | None) -> Iterator[Search]:
    """What searches problems with caches that are empty before: the engine, or replicas of it."""
    if replicas is not None:
        from engine.distributed import Session

        with closing(Session(models, replicas)) as session:
            yield session.search_iter
        return

    def search(
        problems: Sequence[Problem], plan: Assigned, config: SearchConfig, convert: Callable[[SearchResult], Row]
    ) -> Iterator[tuple[int, Row]]:
        clear_caches(engine)
        for position, result in engine.search_iter(problems, plan, config=config):
            yield position, convert(result)

    yield search


def measure_rows(
    engine: Engine,
    problems: list[Problem],
    grid: Grid,
    todo: list[int],
    config: SearchConfig,
    rows: Mapping[int, Row],
    search: Search,
) -> Iterator[tuple[int, Row]]:
    """(position, row) of the searches that are still to be done, cell by cell; `rows` are those done so far.

    All samples are drawn first, so that bins with too few problems are refused before the long part.
    """
    predictor = grid.predictor
    pilot = replace(config, budget=max(1, predictor.num_samples))
    samples = engine.search(problems, PilotSamples(predictor, grid.is_scored), config=pilot)
    if predictor.is_probe:  # whose eases are known at the end alone; but there are problems for one bin, or for none
        check_problems(len(problems))
        eases, bins = [0.0] * len(problems), Bins()
    else:
        eases = [predictor.value(each) for each in samples]
        bins = make_bins(grid, eases)
    members_of(bins, dict(enumerate(eases)), grid.min_per_bin)
    for number, (strategy, budget) in enumerate(grid.cells):
        chosen = [index - number * len(problems) for index in todo if index // len(problems) == number]
        starts = samples if predictor.is_reused else [None] * len(problems)
        running = strategy if strategy.stop is None else stopping_at(strategy, _chances(grid, rows, len(problems)))
        plans = {problems[index].id: Assignment(running, budget, starts[index]) for index in chosen}
        asked, to_row = [problems[index] for index in chosen], partial(_row, strategy=strategy)
        for position, row in search(asked, Assigned(plans), replace(config, budget=budget), convert=to_row):
            index = chosen[position]
            if not predictor.is_probe:
                row["ease"] = eases[index]
            elif number == 0:
                row["features"] = [float(f"{each:.7g}") for each in predictor.features(samples[index])]
            if not predictor.is_reused:  # what a search would have paid for its prediction
                row["tokens"] += _num_tokens(samples[index])
                row["flops"] += samples[index].ledger.total_flops
            yield number * len(problems) + index, row


def _row(result: SearchResult, strategy: Strategy) -> Row:
    return {
        "id": result.problem.id,
        "seed": result.seed,
        "strategy": strategy_label(strategy),
        "budget": result.budget,
        "correct": bool(result.correct),
        "score": _leading_score(result) if strategy.is_scored else None,
        "generations": result.num_generations,
        "tokens": _num_tokens(result),
        "flops": result.ledger.total_flops,
    }


def _leading_score(result: SearchResult) -> float | None:
    """The score that `stop` is compared with: the candidate's, as the last node of an answer may be its end alone."""
    if result.tree.best is None:
        return None
    address = result.tree.nodes[result.tree.best].address
    return next(each.agg_score for each in result.candidates if each.address == address)


def _chances(grid: Grid, rows: Mapping[int, Row], num_problems: int) -> Chances:
    """How often the answers of searches that do not stop are right, by the score of the leading candidate."""
    scored = [number for number, (each, _) in enumerate(grid.cells) if each.is_scored and each.stop is None]
    found = [rows[index] for number in scored for index in range(number * num_problems, (number + 1) * num_problems)]
    pairs = [(row["score"], row["correct"]) for row in found if row["score"] is not None]
    return fit_chances([score for score, _ in pairs], [right for _, right in pairs])


def _num_tokens(result: SearchResult) -> int:
    """Tokens that went through a model: all but those read from the cache."""
    return sum(count for purpose, count in result.ledger.tokens.items() if purpose != "cached")


def _fitted(grid: Grid, rows: Mapping[int, Row], num_problems: int) -> tuple[Predictor, list[float]]:
    """The predictor, and what it says of every problem.

    A probe is fitted to the share of a problem's searches that were right; what it says of a problem, and so the
    problem's bin, comes from a probe that has not seen it.
    """
    if not grid.predictor.is_probe:
        return grid.predictor, [rows[problem]["ease"] for problem in range(num_problems)]
    features = np.array([rows[problem]["features"] for problem in range(num_problems)])
    rights = np.array([rows[index]["correct"] for index in range(len(grid.cells) * num_problems)], dtype=float)
    shares = rights.reshape(len(grid.cells), num_problems).mean(axis=0)
    weights, eases = fit_probe(features, shares, grid.predictor.reads_scores)
    return replace(grid.predictor, weights=weights), eases.tolist()


def _outcome(grid: Grid, index: int, row: Row, eases: Sequence[float]) -> Outcome:
    number, problem = divmod(index, len(eases))
    strategy, budget = grid.cells[number]
    counts = {name: row[name] for name in ("generations", "tokens", "flops")}
    return Outcome(problem, eases[problem], strategy, budget, row["correct"], **counts)


def _has_reviser(models: EngineConfig) -> bool:
    from engine.loading import home_part

    return models.reviser is not None or (models.policy == "home" and home_part("reviser") is not None)


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
