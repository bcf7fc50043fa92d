"""`python -m benchmarks.demo`: what searching buys on problems that the shipped policy mostly fails at.

Every strategy has the same budget of sampled answers per problem. `single` is one sample per
problem; its accuracy is the mean over all samples of the majority run at the same seed, of which
that one sample is the first, and its tokens, FLOPs and seconds are those of the run with one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.options import parse_seeds
from engine.commands import run_app
from engine.engine import Engine
from engine.files import write_atomically
from engine.loading import clear_caches
from engine.reports import compare, summarize, terminal_table, write_report
from engine.reports.progress import RunProgress
from engine.results import result_row, row_line
from engine.results.pools import sample_accuracy
from engine.results.provenance import commit, machine_facts
from engine.results.rows import Row
from engine.scheduler import ComputeOptimal, Planner, calibration_file
from engine.search import BeamSearch, BestOfN, Lookahead, Majority, Revisions, Strategy
from engine.tasks import take_problems
from engine.types import Problem

STRATEGIES = (Majority(), BestOfN(vote="weighted"), BeamSearch(width=4), Lookahead(width=4, lookahead=1))
REVISIONS = Revisions(parallel=4, context=2)
NUM_TREES = 40  # problems whose search trees go into the results, at the first seed
NUM_WARM_UP = 8  # problems

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    seeds: Annotated[str, typer.Option(help="Seeds to average over, e.g. 0,1,2.")] = "0",
    num_problems: Annotated[int, typer.Option(help="Of the test split.")] = 300,
    budget: Annotated[int, typer.Option(help="Sampled answers per problem.")] = 16,
    policy: Annotated[str, typer.Option(help="Hugging Face folder, or the shipped policy.")] = "home",
    prm: Annotated[str, typer.Option(help="Hugging Face folder, or the shipped PRM.")] = "home",
    out: Annotated[str, typer.Option(help="Folder of results.jsonl and report.html.")] = "out/demo",
) -> None:
    """Searches the same problems with every strategy, prints a table and writes a page."""
    numbers = parse_seeds(seeds)
    engine = Engine.load(policy, prm=prm)
    problems = take_problems(engine.task, "test", num_problems)
    rows, seconds = run(engine, strategies(engine, is_home=policy == prm == "home"), problems, numbers, budget)
    results, page = Path(out) / "results.jsonl", Path(out) / "report.html"
    write_atomically(results, b"".join(map(row_line, rows)))
    facts = {**machine_facts(), "commit": commit() or "unknown", "single": "mean over the samples of the majority run"}
    title = f"{len(problems)} problems, budget {budget}"
    write_report(rows, page, title=title, seconds=seconds, facts=facts, opens_on_example=True)
    Console().print(terminal_table(summarize(rows, seconds=seconds), compare(rows)))
    typer.echo(results)
    typer.echo(page)


def strategies(engine: Engine, is_home: bool) -> list[Strategy | Planner]:
    """What is compared: revisions need a reviser, and the shipped calibration holds for the shipped models."""
    found = [*STRATEGIES, *([] if engine.reviser is None else [REVISIONS])]
    return [*found, ComputeOptimal(calibration_file("home"))] if is_home else found


def run(
    engine: Engine,
    compared: Sequence[Strategy | Planner],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    budget: int,
) -> tuple[list[Row], dict[str, float]]:
    """The rows of all strategies and seeds, and the seconds of each strategy over all seeds."""
    for strategy in compared:  # refuses a budget that one of them cannot spend, and warms up
        engine.search(problems[:NUM_WARM_UP], strategy, budget)
    rows: list[Row] = []
    seconds: dict[str, float] = {}

    def measure(strategy: Strategy | Planner, budget: int, seed: int, name: str) -> list[Row]:
        started = time.perf_counter()
        num_trees = NUM_TREES if strategy.is_scored and seed == seeds[0] else 0
        found = search(engine, problems, strategy, budget, seed, f"{name}, seed {seed}:", num_trees)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        return found

    for seed in seeds:
        singles = measure(Majority(), 1, seed, "single")
        for strategy in compared:
            found = measure(strategy, budget, seed, strategy.name)
            if strategy.name == "majority":
                singles = [single_row(row, pool) for row, pool in zip(singles, found, strict=True)]
                rows += singles
            rows += found
    return rows, seconds


def search(
    engine: Engine,
    problems: Sequence[Problem],
    strategy: Strategy | Planner,
    budget: int,
    seed: int,
    label: str,
    num_trees: int,
) -> list[Row]:
    """One row per problem, in order; the prompts are not in the KV cache when it starts."""
    clear_caches(engine)
    rows: dict[int, Row] = {}
    with RunProgress(label, len(problems)) as progress:
        for index, result in engine.search_iter(problems, strategy, budget, seed=seed):
            rows[index] = result_row(result, with_tree=index < num_trees)
            progress.add(rows[index])
    return [rows[index] for index in range(len(problems))]


def single_row(row: Row, pool: Row) -> Row:
    """The row of one sample, with the mean accuracy of all samples of `pool`, of which it is the first."""
    assert row["completions"] == pool["completions"][:1], "the first sample does not depend on the budget"
    return {**row, "strategy": "single", "accuracy": sample_accuracy(pool)}


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:], "python -m benchmarks.demo"))
