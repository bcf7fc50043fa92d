"""A small model that searches against a larger one's greedy answer, at equal FLOPs (Snell et al. 2024, section 7).

    python -m benchmarks.equal_flops --exchange --json out/exchange.json

A policy of M times the parameters costs M times more in pretraining and in use. For a ratio R of inference to
pretraining tokens the small one may sample `Exchange.num_generations` answers per question for the same total, by
either version of the paper. M is that of the two checkpoints (weights that multiply every token), or `--size-ratio`.
Each of `--strategies` searches with that many, rounded down to what it can spend; `--max-generations` bounds it.
The larger model answers once, greedily.

Results are by difficulty: quintiles of the small policy's pass@1 over `--num-bin-samples` answers of their own, which
no search uses; equal shares are not divided, so that there may be fewer bins. `gain` is (small - large) / large,
as in the paper; the interval is that of the difference, a bootstrap over problems. `missing` says what did not run.

What is finished is kept in `--work`, problem by problem: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.options import check_counts, make_parser, settings, split_numbers
from benchmarks.resumable import StoredSearches, digest
from engine import Engine, Majority
from engine.accounting import Exchange
from engine.accounting.exchange import PAPER_TOKEN_RATIOS
from engine.commands import run_command
from engine.errors import UserError
from engine.model import read_config, resolve_folder
from engine.results import JournalInUse
from engine.results.provenance import provenance, write_json
from engine.results.rows import Row
from engine.results.statistics import bootstrap_interval
from engine.scheduler import (
    Bins,
    CalibrationWarning,
    ComputeOptimal,
    PilotSamples,
    Planner,
    Predictor,
    calibration_file,
    parse_strategy,
)
from engine.search import Strategy
from engine.tasks import take_problems
from engine.types import GREEDY

# By strategy and budget: the generations that were spent, and each problem's share of right answers.
Accuracies = dict[str, dict[int, tuple[int, np.ndarray]]]

LARGE = Path(__file__).resolve().parent.parent / "checkpoints" / "large"  # what `make large` trains


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("equal_flops --exchange", __doc__)
    parser.add_argument("--large", default=str(LARGE), help="folder of a larger policy, by default the shipped one")
    parser.add_argument("--policy", default="home", help="the small one")
    parser.add_argument("--prm", help="by default the shipped one, with the shipped policy")
    parser.add_argument("--calibration", default="home", help="of compute-optimal")
    parser.add_argument("--strategies", default="best-of-n,compute-optimal,revisions:parallel=4")
    parser.add_argument("--size-ratio", type=float, help="M, in the place of the checkpoints' own")
    parser.add_argument("--token-ratios", help="R, e.g. 0.16,0.79,22; by default the paper's, of each version")
    parser.add_argument("--max-generations", type=int, default=256)
    parser.add_argument("--num-problems", type=int, default=500, help="of the test split")
    parser.add_argument("--num-bin-samples", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, default=Path("out/exchange"), help="folder of what is finished")
    args = parser.parse_args(arguments)
    check_counts(parser, args)
    split_numbers(parser, args, seeds=int, token_ratios=float)
    args.strategies = args.strategies.split(",")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return run_command(partial(run, parse_arguments(arguments)))


def run(args: argparse.Namespace) -> None:
    """Searches what has not been searched yet, writes the report and shows it."""
    report = measure(args)
    write_json(args.json, report)
    show(report, Console(width=140))


def measure(args: argparse.Namespace) -> dict:
    """The whole report. Raises UserError for models, ratios or problems that cannot be compared."""
    folders = [resolve_folder(args.policy), resolve_folder(args.large)]
    params = [read_config(folder).shape().num_matmul_params for folder in folders]
    size_ratio = params[1] / params[0] if args.size_ratio is None else args.size_ratio
    exchanges = [
        Exchange.from_ratios(size_ratio, ratio, version)
        for version, ratios in PAPER_TOKEN_RATIOS.items()
        for ratio in args.token_ratios or ratios
    ]
    engine, large = Engine.load(args.policy, prm=args.prm), Engine.load(args.large)
    problems = take_problems(engine.task, "test", args.num_problems)
    greedy = _rights(StoredSearches.of(args.work, large, problems).rows("large-greedy", Majority(), 1, sampling=GREEDY))
    stored = StoredSearches.of(args.work, engine, problems)
    bins, members = difficulty(stored, args.num_bin_samples)
    budgets = sorted({min(exchange.num_generations, args.max_generations) for exchange in exchanges})
    accuracies, missing = searched(stored, args, budgets)
    return provenance() | {
        "settings": settings(args, "work"),
        "params_small": params[0],
        "params_large": params[1],
        "size_ratio": size_ratio,
        "accuracy_large": float(np.mean(greedy)),
        "bins": [
            {"bin": bins.describe(index), "num_problems": len(found), "accuracy_large": float(np.mean(greedy[found]))}
            for index, found in enumerate(members)
        ],
        "rows": [
            row
            for exchange in exchanges
            for row in rows_of(exchange, args.max_generations, accuracies, greedy, members)
        ],
        "missing": missing,
    }


def rows_of(
    exchange: Exchange, max_generations: int, accuracies: Accuracies, greedy: np.ndarray, members: Sequence[np.ndarray]
) -> Iterator[dict]:
    """The rows of one ratio of tokens: by strategy, of all problems and of each bin."""
    budget = min(exchange.num_generations, max_generations)
    facts = {
        "version": exchange.version,
        "R": exchange.token_ratio,
        "generations_allowed": exchange.num_generations,
    }
    for strategy, by_budget in accuracies.items():
        if budget in by_budget:
            spent, rights = by_budget[budget]
            for row in compared(rights, greedy, members):
                yield facts | {"strategy": strategy, "budget": spent} | row


def difficulty(stored: StoredSearches, num_samples: int) -> tuple[Bins, list[np.ndarray]]:
    """Quintiles of the policy's pass@1, easiest first, and the problems (positions) of each."""
    oracle, grade = Predictor("oracle", num_samples, is_reused=False), stored.engine.task.grade
    strategy = PilotSamples(oracle, is_judged=False)
    rows = stored.rows("bins", strategy, num_samples, measure=lambda samples: {"ease": oracle.value(samples, grade)})
    eases = [row["ease"] for row in rows]
    bins = Bins.quantiles(eases)
    indices = np.array([bins.index(ease) for ease in eases])
    return bins, [np.flatnonzero(indices == index) for index in range(bins.count)]


def searched(stored: StoredSearches, args: argparse.Namespace, budgets: Sequence[int]) -> tuple[Accuracies, list[dict]]:
    """What each strategy reaches with each budget, and what is missing."""
    found: Accuracies = {}
    missing = []
    for name in args.strategies:
        for budget in budgets:
            try:
                found.setdefault(name, {})[budget] = searched_with(stored, name, budget, args)
            except JournalInUse:
                raise
            except (UserError, CalibrationWarning) as error:
                missing.append({"strategy": name, "budget": budget, "reason": str(error)})
    return found, missing


def searched_with(stored: StoredSearches, name: str, budget: int, args: argparse.Namespace) -> tuple[int, np.ndarray]:
    """The generations that a strategy spends of a budget, and each problem's share of right answers over the seeds.

    Raises UserError or CalibrationWarning where it cannot search.
    """
    strategy, more = strategy_of(name, args.calibration)
    spent = spendable(strategy, budget)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)  # its fallback is another strategy
        runs = [_rights(stored.rows(name, strategy, spent, more, seed=seed)) for seed in args.seeds]
    return spent, np.mean(runs, axis=0)


def strategy_of(name: str, calibration: str) -> tuple[Strategy | Planner, dict]:
    """A strategy by its name, and what its rows depend on beside it: the calibration's contents."""
    if name != ComputeOptimal.name:
        return parse_strategy(name), {}
    path = calibration_file(calibration)
    return ComputeOptimal(path), {"calibration": digest(Path(path).read_text())}


def spendable(strategy: Strategy | Planner, budget: int) -> int:
    """The largest number of generations up to a budget that the strategy can spend. Raises its UserError for none."""
    for each in range(budget, 0, -1):
        try:
            strategy.groups(each)
            return each
        except UserError as error:
            reason = error
    raise reason


def compared(small: np.ndarray, large: np.ndarray, members: Sequence[np.ndarray]) -> Iterable[dict]:
    """Accuracies, their difference and the relative gain: of all problems, then bin by bin."""
    for index, found in [(None, np.arange(len(small))), *enumerate(members)]:
        ours, theirs = float(np.mean(small[found])), float(np.mean(large[found]))
        low, high = bootstrap_interval((small[found] - large[found]).tolist(), found.tolist())
        yield {
            "bin": index,
            "accuracy_small": ours,
            "accuracy_large": theirs,
            "difference": [ours - theirs, low, high],
            "gain": (ours - theirs) / theirs if theirs else None,
        }


def _rights(rows: Iterable[Row]) -> np.ndarray:
    return np.array([float(row["correct"]) for row in rows])


def show(report: dict, console: Console) -> None:
    """The report as a table: relative gains, and differences in points where the larger model has none right."""
    console.print(
        f"M = {report['size_ratio']:.2f}; the larger model's greedy answer is right in "
        f"{100 * report['accuracy_large']:.1f} %; commit {report['commit']}",
        markup=False,
    )
    for number, entry in enumerate(report["bins"], start=1):
        console.print(f"{number}: {entry['bin']}, {entry['num_problems']} problems", markup=False)
    bins = range(len(report["bins"]))
    table = Table("version", "R", "strategy", "budget", "all", *(f"bin {index + 1}" for index in bins))
    lines: dict[tuple, list[str]] = {}
    for row in report["rows"]:
        key = (row["version"], f"{row['R']:g}", row["strategy"], f"{row['budget']} of {row['generations_allowed']}")
        points, low, high = (100 * value for value in row["difference"])
        gain = "" if row["gain"] is None else f"{100 * row['gain']:+.0f} %: "
        lines.setdefault(key, []).append(f"{gain}{points:+.1f} ({low:+.1f} to {high:+.1f})")
    for key, cells in lines.items():
        table.add_row(*key, *cells)
    console.print(table)
    for entry in report["missing"]:
        console.print(f"{entry['strategy']} at {entry['budget']}: {entry['reason']}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
