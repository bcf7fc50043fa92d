"""One budget for a batch: allocation by predicted difficulty against the uniform split, at equal total FLOPs.

    python -m benchmarks.global_budget --json out/global_budget.json

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
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.hardware import commit, hardware, versions
from engine import ComputeOptimal, Engine, Majority, Problem, SearchResult
from engine.commands import parse_numbers
from engine.cli.strategies import calibration_file
from engine.engine import DEFAULT_SAMPLING
from engine.errors import UserError
from engine.results.statistics import bootstrap_interval
from engine.scheduler import CalibrationWarning, parse_strategy
from engine.tasks import take_problems
from engine.types import GREEDY

NUM_RESAMPLES = 2000
GRID = "1,2,4,8,16,32,64"


@dataclass(frozen=True)
class Point:
    """One way to search all problems; arrays hold a mean over seeds for every problem."""

    budget: int  # generations per problem, on average
    rights: np.ndarray  # 0..1
    flops: np.ndarray
    generations: float  # mean, spent

    @classmethod
    def of(cls, budget: int, runs: Sequence[Sequence[SearchResult]]) -> Point:
        """From the results of every seed."""
        return cls(
            budget,
            np.mean([[bool(result.correct) for result in run] for run in runs], axis=0),
            np.mean([[result.ledger.total_flops for result in run] for run in runs], axis=0),
            float(np.mean([[result.num_generations for result in run] for run in runs])),
        )

    def as_dict(self) -> dict[str, object]:
        low, high = bootstrap_interval(self.rights.tolist(), range(len(self.rights)))
        return {
            "budget": self.budget,
            "accuracy": [float(self.rights.mean()), low, high],
            "flops": float(self.flops.mean()),
            "generations": self.generations,
        }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.global_budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", default="home")
    parser.add_argument("--prm", help="by default the shipped one, with the shipped policy")
    parser.add_argument("--calibration", default="home", help="file of `ttc calibrate`")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num-problems", type=int, default=200)
    parser.add_argument("--per-problem", default="4,8,16,32", help="generations that are divided, over the problems")
    parser.add_argument("--uniform", default="majority,best-of-n,beam:width=4,rebase", help="strategies")
    parser.add_argument("--budgets", default=GRID, help="of the uniform splits, per problem")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path, help="where the report goes")
    args = parser.parse_args(arguments)
    try:
        for name in ("per_problem", "budgets", "seeds"):
            setattr(args, name, sorted(set(parse_numbers(f"--{name.replace('_', '-')}", getattr(args, name), int))))
    except ValueError as error:
        parser.error(str(error))
    args.uniform = args.uniform.split(",")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    args, console = parse_arguments(arguments), Console(width=140)
    try:
        report = measure(args)
    except (ValueError, CalibrationWarning) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report, console)
    return 0


def measure(args: argparse.Namespace) -> dict:
    """The whole report. Raises UserError for what cannot be searched, CalibrationWarning for other models."""
    planner = ComputeOptimal(calibration_file(args.calibration))
    engine = Engine.load(args.policy, prm=args.prm)
    problems = take_problems(engine.task, args.split, args.num_problems)
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "policy", "prm")}
    report = {"hardware": hardware(), "versions": versions(), "commit": commit(), "settings": settings}
    predictor, bins = planner.calibration.predictor, planner.calibration.bins
    report["tuned"] = (
        f"on {planner.calibration.problems}: the strategy and the accuracy curve of each of {bins.count} bins; the "
        f"predictor ({predictor.name} of {predictor.num_samples} samples) and the number of bins were chosen there too"
    )
    allocated = [Point.of(each, allocate_all(engine, problems, planner, each, args.seeds)) for each in args.per_problem]
    uniform = {name: uniform_points(engine, problems, name, args) for name in args.uniform}
    report["allocated"] = [point.as_dict() for point in allocated]
    report["uniform"] = {name: [point.as_dict() for point in points] for name, points in uniform.items()}
    report["compared"] = [
        {"budget": point.budget, "uniform": name} | compared(point, points)
        for point in allocated
        for name, points in uniform.items()
    ]
    return report


def allocate_all(
    engine: Engine, problems: Sequence[Problem], planner: ComputeOptimal, per_problem: int, seeds: Sequence[int]
) -> list[list[SearchResult]]:
    runs = []
    for seed in seeds:
        clear_caches(engine)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CalibrationWarning)  # its fallback is a uniform split
            total = per_problem * len(problems)
            runs.append(engine.search_batch(problems, planner, total, seed=seed))
        assert sum(result.num_generations for result in runs[-1]) <= total, "total budget overshot"
    return runs


def uniform_points(engine: Engine, problems: Sequence[Problem], name: str, args: argparse.Namespace) -> list[Point]:
    """A strategy at all budgets that it can spend. Raises UserError where these are fewer than two."""
    strategy = parse_strategy(name)
    points = []
    for budget in args.budgets:
        chosen, sampling = (Majority(), GREEDY) if budget == 1 else (strategy, DEFAULT_SAMPLING)
        try:
            chosen.groups(budget)
        except ValueError:
            continue
        runs = []
        for seed in args.seeds[:1] if budget == 1 else args.seeds:
            clear_caches(engine)
            runs.append(engine.search(problems, chosen, budget, seed=seed, sampling=sampling))
        points.append(Point.of(budget, runs))
    if len(points) < 2:
        raise UserError(f"{name} can spend {len(points)} of the budgets {args.budgets}, two are needed to compare")
    return points


def clear_caches(engine: Engine) -> None:
    """No search may live on what the one before it has paid for."""
    for llm in filter(None, (engine.policy, engine.prm)):
        llm.runner.tree.clear_cache()


def compared(allocated: Point, uniform: Sequence[Point]) -> dict[str, object]:
    """An allocation against one uniform strategy: at equal FLOPs, and at equal accuracy."""
    points = sorted(uniform, key=lambda point: point.flops.mean())
    spent = [float(point.flops.mean()) for point in points]
    mixed = at_flops(points, float(allocated.flops.mean()))
    differences = allocated.rights - mixed
    low, high = bootstrap_interval(differences.tolist(), range(len(differences)))
    share, is_reached = flops_share(allocated.rights.mean(), allocated.flops.mean(), points, None)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(mixed), np.full(len(mixed), 1 / len(mixed)), size=NUM_RESAMPLES)
    shares = []
    for weights in counts / len(mixed):
        own = float(weights @ allocated.rights), float(weights @ allocated.flops)
        shares.append(flops_share(*own, points, weights)[0])
    return {
        "accuracy": float(allocated.rights.mean()),
        "accuracy_uniform": float(mixed.mean()),
        "points": [100 * float(differences.mean()), 100 * low, 100 * high],
        "flops": float(allocated.flops.mean()),
        "is_within_grid": bool(spent[0] <= allocated.flops.mean() <= spent[-1]),
        "flops_share": [share, *map(float, np.quantile(shares, [0.025, 0.975]))],
        "is_reached": is_reached,
    }


def at_flops(points: Sequence[Point], flops: float) -> np.ndarray:
    """Each problem's share of right answers under the uniform split of so many FLOPs; flat beyond the grid's ends."""
    spent = [float(point.flops.mean()) for point in points]
    right = int(np.clip(np.searchsorted(spent, flops), 1, len(points) - 1))
    weight = np.clip((flops - spent[right - 1]) / (spent[right] - spent[right - 1]), 0.0, 1.0)
    return (1 - weight) * points[right - 1].rights + weight * points[right].rights


def flops_share(
    accuracy: float, flops: float, points: Sequence[Point], weights: np.ndarray | None
) -> tuple[float, bool]:
    """FLOPs over the least that a uniform split (points by rising FLOPs) needs for the same accuracy.

    The second value is False where none reaches it: the share is then that of the grid's largest,
    which is more than the true one. `weights` are those of the problems, by default equal.
    """
    curve = [
        (float(np.average(point.flops, weights=weights)), float(np.average(point.rights, weights=weights)))
        for point in points
    ]
    accuracy -= 1e-9  # equal shares of right answers, as means of means, differ by less
    if curve[0][1] >= accuracy:
        return flops / curve[0][0], True
    for (cost, value), (next_cost, next_value) in pairwise(curve):
        if next_value >= accuracy:
            return flops / (cost + (accuracy - value) / (next_value - value) * (next_cost - cost)), True
    return flops / curve[-1][0], False


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
