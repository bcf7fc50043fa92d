"""`ttc calibrate`: which strategy is best at which difficulty and budget, measured into one file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.inputs import check_prompts, find_limits, find_problems, load_engine
from engine.cli.options import option
from engine.commands import parse_numbers
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.results import Journal
    from engine.results.rows import Row
    from engine.scheduler import Bins, Outcome, Predictor
    from engine.search import Strategy
    from engine.types import Problem, SearchResult

_STRATEGIES = "majority,best-of-n,beam:width=2,beam:width=4,rebase,adaptive:vote=majority"
_OF_ANSWERS = "majority,best-of-n,adaptive:vote=majority"  # of them what an ORM can judge, or nobody judges


def calibrate(
    ctx: typer.Context,
    problems: Annotated[str | None, typer.Argument(help="JSONL file with `problem` and `answer`.")] = None,
    task: Annotated[str, option("How prompts are written and answers graded.", "Problems")] = "chain",
    split: Annotated[str, option("Of the task, without a file: train, validation, test.", "Problems")] = "validation",
    limit: Annotated[int | None, option("The first so many problems; of a task 100.", "Problems")] = None,
    problem_column: Annotated[
        str | None, option("Of the rows that are read; by default the task's.", "Problems")
    ] = None,
    answer_column: Annotated[
        str | None, option("Of the rows that are read; by default the task's.", "Problems")
    ] = None,
    prompt_style: Annotated[str, option("plain, chat, steps, boxed: see `ttc search`.", "Prompts")] = "plain",
    system_prompt: Annotated[str | None, option("File or text, in the place of the style's own.", "Prompts")] = None,
    few_shot: Annotated[str | None, option("Worked examples, as for `ttc search`.", "Prompts")] = None,
    step_delimiter: Annotated[str | None, option("Ends a step; by default the style's or task's.", "Prompts")] = None,
    strategies: Annotated[
        str, option("With commas between; options after colons, as in beam:width=2:vote=naive.", "Grid")
    ] = _STRATEGIES,
    budgets: Annotated[str, option("Generations per problem, e.g. 4,8,16.", "Grid")] = "4,8,16",
    predictor: Annotated[
        str, option("agreement of samples, their verifier score, or oracle (pass@1).", "Difficulty")
    ] = "agreement",
    pilot: Annotated[int, option("Samples that difficulty is predicted from.", "Difficulty")] = 4,
    reuse: Annotated[
        bool | None,
        option("Whether they count in the budget and vote; by default yes, but for the oracle's.", "Difficulty"),
    ] = None,
    bins: Annotated[
        str, option("quintiles, quantiles:8, absolute (0.1,0.5), one, or rising edges of one's own.", "Difficulty")
    ] = "quintiles",
    min_per_bin: Annotated[
        int, option("Problems that a bin must hold; smaller quantiles are joined.", "Difficulty")
    ] = 10,
    agg_strategy: Annotated[str, option("last, min, prod, mean of an answer's step scores.", "Search")] = "last",
    verifier: Annotated[str, option("prm, trunk, orm (of whole answers), oracle.", "Search")] = "prm",
    temperature: Annotated[float | None, option("0 is greedy; by default the engine's.", "Search")] = None,
    top_p: Annotated[float | None, option("Smallest set of tokens that holds this share.", "Search")] = None,
    top_k: Annotated[int | None, option("Most likely tokens; 0 keeps all.", "Search")] = None,
    min_p: Annotated[float | None, option("Least share of the likeliest token's.", "Search")] = None,
    max_tokens: Annotated[int | None, option("Tokens of a completion; by default the task's.", "Search")] = None,
    seed: Annotated[int, option("Of every draw.", "Search")] = 0,
    policy: Annotated[str, option("Hugging Face folder, or the shipped policy.", "Models")] = "home",
    prm: Annotated[str | None, option("Hugging Face folder; with the shipped policy `home`.", "Models")] = None,
    prm_spec: Annotated[str | None, option("The PRM's format: a built-in name or a YAML file.", "Models")] = None,
    orm: Annotated[str | None, option("Hugging Face folder of a verifier of answers.", "Models")] = None,
    orm_spec: Annotated[str | None, option("The ORM's format, as --prm-spec.", "Models")] = None,
    trunk_head: Annotated[str | None, option("Folder; with the shipped policy `home`.", "Models")] = None,
    reviser: Annotated[
        str | None, option("Folder of the model that revises, for revisions among the strategies.", "Models")
    ] = None,
    device: Annotated[str, option("cpu, cuda.", "Models")] = "cpu",
    dtype: Annotated[str, option("float32, bfloat16; with cuda float16.", "Models")] = "float32",
    max_batch: Annotated[int | None, option("Branches of one forward; changes no result.", "Models")] = None,
    num_blocks: Annotated[int | None, option("KV pool of each model, in blocks of 16 tokens.", "Models")] = None,
    out: Annotated[str, option("The calibration, one readable JSON file.", "Output")] = "calibration.json",
    overwrite: Annotated[bool, option("Drop what --out holds.", "Output", "--overwrite")] = False,
) -> None:
    """Measures strategies and budgets by difficulty, for `ttc search --strategy compute-optimal`.

    Every problem is searched by every strategy at every budget. A killed run goes on where it
    stopped; another --bins or --min-per-bin uses what has been measured again.
    """
    given = {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    typer.echo(run_calibrate(SimpleNamespace(**ctx.params), given))


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


def run_calibrate(options: SimpleNamespace, given: Collection[str]) -> str:
    """Checks everything that can be checked, searches, writes the file; returns a table and the closing line."""
    from engine.cli.runs import check_out, run_rows
    from engine.cli.strategies import check_verifier_used
    from engine.cli.tables import calibration_table
    from engine.results.files import write_atomically
    from engine.scheduler import PilotSamples, measure, read_calibration

    check_out(options.out)
    check_verifier_used(options.verifier, given)
    if options.verifier == "orm" and "strategies" not in given:
        options.strategies = _OF_ANSWERS
    grid = build_grid(options)
    sampled = PilotSamples(grid.predictor, grid.is_scored, grid.revises)
    problems, origins = find_problems(options, given)
    options.budget = max(budget for _, budget in grid.cells)
    sampling, max_tokens = find_limits(options, sampled)
    engine, _ = load_engine(options, sampled)
    problems = [engine.as_problem(problem, index) for index, problem in enumerate(problems)]
    _check_answers(problems, origins)
    check_prompts(engine, problems, origins)
    settings = {
        "sampling": sampling,
        "max_tokens": max_tokens,
        "agg_strategy": options.agg_strategy,
        "verifier": options.verifier,
    }
    conditions = engine.conditions(sampled, **settings)

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        yield from measure_rows(engine, problems, grid, todo, {**settings, "seed": options.seed})

    def write(ledger: Journal) -> None:
        outcomes = [_outcome(grid, index, row, len(problems)) for index, row in sorted(ledger.done.items())]
        eases = {outcome.problem: outcome.ease for outcome in outcomes}
        calibration = measure(
            outcomes,
            conditions=conditions,
            problems=f"{options.problems or f'{options.task}/{options.split}'}, {len(problems)} problems",
            predictor=grid.predictor,
            bins=make_bins(grid, list(eases.values())),
            min_per_bin=grid.min_per_bin,
        )
        write_atomically(options.out, calibration.to_json().encode())

    line = run_rows(
        options.out,
        _config(options, grid, problems, conditions),
        make_rows,
        num_total=len(problems) * len(grid.cells),
        label="searches",
        overwrite=options.overwrite,
        write=write,
    )
    return f"{calibration_table(read_calibration(options.out))}\n{line}"


def build_grid(options: SimpleNamespace) -> Grid:
    """The cells that can be spent. Raises UserError for a strategy that none of the budgets suits."""
    from engine.scheduler import Predictor, can_spend, parse_strategy, strategy_label

    is_reused = options.predictor != "oracle" if options.reuse is None else options.reuse
    predictor = Predictor(options.predictor, options.pilot, is_reused)
    strategies = dict.fromkeys(map(parse_strategy, options.strategies.split(",")))
    for strategy in strategies:
        if options.verifier == "orm" and strategy.is_scored and strategy.stop_at_step:
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
    from engine.scheduler import ABSOLUTE_EDGES, Bins

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
    engine: Engine, problems: list[Problem], grid: Grid, todo: list[int], settings: dict
) -> Iterator[tuple[int, Row]]:
    """(position, row) of the searches that are still to be done, cell by cell.

    All samples are drawn first, so that bins with too few problems are refused before the long part.
    """
    from engine.scheduler import Assigned, Assignment, PilotSamples, members_of

    predictor = grid.predictor
    samples = engine.search(problems, PilotSamples(predictor, grid.is_scored), predictor.num_samples, **settings)
    eases = [predictor.value(each) for each in samples]
    members_of(make_bins(grid, eases), dict(enumerate(eases)), grid.min_per_bin)
    for number, (strategy, budget) in enumerate(grid.cells):
        chosen = [index - number * len(problems) for index in todo if index // len(problems) == number]
        starts = samples if predictor.is_reused else [None] * len(problems)
        plans = {problems[index].id: Assignment(strategy, budget, starts[index]) for index in chosen}
        for llm in filter(None, (engine.policy, engine.prm, engine.orm, engine.reviser)):
            llm.clear_cache()  # a strategy must not live on what the one before it has paid for
        found = engine.search_iter([problems[index] for index in chosen], Assigned(plans), budget, **settings)
        for position, result in found:
            index = chosen[position]
            row = _row(result, strategy, eases[index])
            if not predictor.is_reused:  # what a search would have paid for its prediction
                row["tokens"] += _num_tokens(samples[index])
                row["flops"] += samples[index].ledger.total_flops
            yield number * len(problems) + index, row


def _row(result: SearchResult, strategy: Strategy, ease: float) -> Row:
    from engine.scheduler import strategy_label

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
    from engine.scheduler import Outcome

    number, problem = divmod(index, num_problems)
    strategy, budget = grid.cells[number]
    counts = {name: row[name] for name in ("generations", "tokens", "flops")}
    return Outcome(problem, row["ease"], strategy, budget, row["correct"], **counts)


def _check_answers(problems: list[Problem], origins: list[str]) -> None:
    for problem, origin in zip(problems, origins, strict=True):
        if problem.answer is None:
            raise UserError(f"{origin}: a calibration needs the answer of every problem, got None")


def _config(options: SimpleNamespace, grid: Grid, problems: list[Problem], conditions: dict) -> dict:
    """All that the rows depend on; bins only sort them."""
    from dataclasses import asdict

    from engine.results.digests import problems_digest
    from engine.scheduler import strategy_label

    return {
        "problems": problems_digest(problems),
        "num_problems": len(problems),
        "conditions": conditions,
        "predictor": asdict(grid.predictor),
        "cells": [f"{strategy_label(strategy)}@{budget}" for strategy, budget in grid.cells],
        "seed": options.seed,
        "dtype": options.dtype,
        "device": options.device,
    }
