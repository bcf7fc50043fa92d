"""One budget for a batch: allocation by predicted difficulty against the uniform split, at equal total FLOPs.

    python -m benchmarks.equal_flops.global_budget --json out/global_budget.json

The problems are the first `--num-problems` of the task's test split, of all depths. `search_batch` divides
`--per-problem` generations times the number of problems, by a calibration that was measured on validation problems;
every uniform strategy gives each problem the same; with one generation that is the greedy answer, whatever the
strategy. FLOPs are those of the whole bill: verifier and estimation included.

No uniform split costs exactly what an allocation cost. Between two budgets that were measured, a uniform split is one
that gives a random share of the problems the larger of the two: its accuracy and FLOPs are the means with that share
as the weight, and by it they are compared at equal FLOPs, problem by problem. `points` is allocation less uniform;
`flops_share` is what the allocation cost over the least that a uniform split costs for the same accuracy (at least as
good where the uniform one does not reach it: `is_reached`). Intervals (95 %) are bootstraps over problems.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmarks.equal_flops.uniform import Point, compared
from benchmarks.options import make_parser, settings, split_numbers
from engine import ComputeOptimal, Engine, Majority, Problem, Sampling, SearchResult
from engine.commands import run_command
from engine.engine import DEFAULT_SAMPLING
from engine.errors import UserError
from engine.loading import clear_caches
from engine.reports.progress import Progress
from engine.results.provenance import provenance, write_json
from engine.scheduler import CalibrationWarning, calibration_file, can_spend, parse_strategy
from engine.search import Strategy
from engine.tasks import take_problems
from engine.types import GREEDY

Split = tuple[int, Strategy, Sampling]  # a budget for every problem, and how it is spent
GRID = "1,2,4,8,16,32,64"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("equal_flops.global_budget", __doc__)
    parser.add_argument("--policy", default="home")
    parser.add_argument("--prm", help="by default the shipped one, with the shipped policy")
    parser.add_argument("--calibration", default="home", help="file of `ttc calibrate`")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num-problems", type=int, default=200)
    parser.add_argument("--per-problem", default="4,8,16,32", help="generations that are divided, over the problems")
    parser.add_argument("--uniform", default="majority,best-of-n,beam:width=4,rebase", help="strategies")
    parser.add_argument("--budgets", default=GRID, help="of the uniform splits, per problem")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args(arguments)
    lists = ("per_problem", "budgets", "seeds")
    split_numbers(parser, args, **dict.fromkeys(lists, int))
    for name in lists:
        setattr(args, name, sorted(set(getattr(args, name))))
    args.uniform = args.uniform.split(",")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return run_command(partial(run, parse_arguments(arguments)))


def run(args: argparse.Namespace) -> None:
    """Searches, writes the report and shows it. Raises UserError for what cannot be searched."""
    try:
        report = measure(args)
    except CalibrationWarning as warning:
        raise UserError(str(warning)) from None
    write_json(args.json, report)
    show(report, Console(width=140))


def measure(args: argparse.Namespace) -> dict:
    """The whole report. Raises UserError for what cannot be searched, CalibrationWarning for other models."""
    planner = ComputeOptimal(calibration_file(args.calibration))
    engine = Engine.load(args.policy, prm=args.prm)
    problems = take_problems(engine.task, args.split, args.num_problems)
    splits = {name: uniform_splits(name, args.budgets) for name in args.uniform}
    num_runs = len(args.seeds) * len(args.per_problem) + sum(
        len(seeds_for(sampling, args.seeds)) for found in splits.values() for _, _, sampling in found
    )
    with Progress("runs of all problems:", num_runs) as progress:
        allocated = [
            Point.of(each, list(allocated_runs(engine, problems, planner, each, args.seeds, progress)))
            for each in args.per_problem
        ]
        uniform = {name: uniform_points(engine, problems, name, splits[name], args, progress) for name in args.uniform}
    return provenance() | {
        "settings": settings(args),
        "tuned": tuned(planner),
        "allocated": [point.as_dict() for point in allocated],
        "uniform": {name: [point.as_dict() for point in points] for name, points in uniform.items()},
        "compared": [
            {"budget": point.budget, "uniform": name} | compared(point, points)
            for point in allocated
            for name, points in uniform.items()
        ],
    }


def tuned(planner: ComputeOptimal) -> str:
    """What was chosen by looking at which problems."""
    predictor, bins = planner.calibration.predictor, planner.calibration.bins
    return (
        f"on {planner.calibration.problems}: the strategy and the accuracy curve of each of {bins.count} bins; the "
        f"predictor ({predictor.name} of {predictor.num_samples} samples) and the number of bins were chosen there too"
    )


def allocated_runs(
    engine: Engine,
    problems: Sequence[Problem],
    planner: ComputeOptimal,
    per_problem: int,
    seeds: Sequence[int],
    progress: Progress,
) -> Iterator[list[SearchResult]]:
    """The results of every seed, with the budget divided by predicted difficulty."""
    total = per_problem * len(problems)
    for seed in seeds:
        clear_caches(engine)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CalibrationWarning)  # its fallback is a uniform split
            results = engine.search_batch(problems, planner, total, seed=seed)
        assert sum(result.num_generations for result in results) <= total, "total budget overshot"
        progress.advance(f"{per_problem} per problem, divided")
        yield results


def uniform_splits(name: str, budgets: Sequence[int]) -> list[Split]:
    """The budgets that a strategy can spend, with the greedy answer for a budget of one."""
    strategy = parse_strategy(name)
    found = []
    for budget in budgets:
        chosen, sampling = (Majority(), GREEDY) if budget == 1 else (strategy, DEFAULT_SAMPLING)
        if can_spend(chosen, budget):
            found.append((budget, chosen, sampling))
    return found


def seeds_for(sampling: Sampling, seeds: Sequence[int]) -> Sequence[int]:
    """All seeds, or one for greedy answers, which are the same with each."""
    return seeds[:1] if sampling == GREEDY else seeds


def uniform_points(
    engine: Engine,
    problems: Sequence[Problem],
    name: str,
    splits: Sequence[Split],
    args: argparse.Namespace,
    progress: Progress,
) -> list[Point]:
    """A strategy with the same budget for every problem. Raises UserError where it can spend fewer than two budgets."""
    if len(splits) < 2:
        raise UserError(f"{name} can spend {len(splits)} of the budgets {args.budgets}, two are needed to compare")
    points = []
    for budget, strategy, sampling in splits:
        runs = []
        for seed in seeds_for(sampling, args.seeds):
            clear_caches(engine)
            runs.append(engine.search(problems, strategy, budget, seed=seed, sampling=sampling))
            progress.advance(f"{name}, {budget} each")
        points.append(Point.of(budget, runs))
    return points


def show(report: dict, console: Console) -> None:
    """The report as a table."""
    console.print(f"{report['settings']['num_problems']} problems; tuned {report['tuned']}", markup=False)
    curves = Table("strategy", "generations", "accuracy (95 %)", "GFLOPs per problem")
    for name, points in {"allocated": report["allocated"], **report["uniform"]}.items():
        for point in points:
            accuracy, low, high = (100 * value for value in point["accuracy"])
            shown = f"{accuracy:.1f} % ({low:.1f} to {high:.1f})"
            curves.add_row(name, f"{point['generations']:.1f}", shown, f"{point['flops'] / 1e9:.3g}")
    console.print(curves)
    table = Table("divided, per problem", "against", "points at equal FLOPs", "FLOPs at equal accuracy")
    for row in report["compared"]:
        points = "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["points"])
        share = "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * value for value in row["flops_share"]))
        table.add_row(
            str(row["budget"]),
            row["uniform"],
            points if row["is_within_grid"] else f"{points}, beyond the budgets measured",
            share if row["is_reached"] else f"under {share}: not reached",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
