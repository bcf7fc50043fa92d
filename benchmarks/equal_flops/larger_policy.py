"""A small model that searches against a larger one's greedy answer, at equal FLOPs (Snell et al. 2024, section 7).

    python -m benchmarks.flops_matched --exchange --json out/exchange.json

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
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.hardware import commit, hardware, versions
from benchmarks.paper.runs import read_rows, run_rows
from engine import Engine, Majority, Problem
from engine.accounting import Exchange
from engine.results.digests import problems_digest
from engine.commands import parse_numbers
from engine.cli.strategies import calibration_file
from engine.model import read_config, resolve_folder
from engine.model.digest import checkpoint_digest
from engine.results import JournalInUse
from engine.results.statistics import bootstrap_interval
from engine.results.rows import Row
from engine.scheduler import Bins, CalibrationWarning, ComputeOptimal, Planner, Predictor, Sampled, parse_strategy
from engine.search import Strategy
from engine.tasks import take_problems
from engine.types import GREEDY, SearchResult

LARGE = Path(__file__).resolve().parent / "checkpoints" / "large"  # what `make large` trains
# R = D_inf / D_pre as in the paper, by its version.
RATIOS = {"arxiv": (0.16, 0.79, 22.0), "iclr": (0.08, 0.40, 11.0)}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flops_matched --exchange",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    parser.add_argument("--json", type=Path, help="where the report goes")
    args = parser.parse_args(arguments)
    for name in ("max_generations", "num_problems", "num_bin_samples"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    try:
        args.seeds = parse_numbers("--seeds", args.seeds, int)
        if args.token_ratios is not None:
            args.token_ratios = parse_numbers("--token-ratios", args.token_ratios, float)
    except ValueError as error:
        parser.error(str(error))
    args.strategies = args.strategies.split(",")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    args, console = parse_arguments(arguments), Console(width=140)
    try:
        report = measure(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report, console)
    return 0


def measure(args: argparse.Namespace) -> dict:
    """The whole report. Raises UserError for models, ratios or problems that cannot be compared."""
    folders = [resolve_folder(args.policy), resolve_folder(args.large)]
    params = [read_config(folder).shape().num_matmul_params for folder in folders]
    size_ratio = params[1] / params[0] if args.size_ratio is None else args.size_ratio
    trades = [
        Exchange.from_ratios(size_ratio, ratio, version)
        for version, ratios in RATIOS.items()
        for ratio in args.token_ratios or ratios
    ]
    engine, large = Engine.load(args.policy, prm=args.prm), Engine.load(args.large)
    problems = take_problems(engine.task, "test", args.num_problems)
    greedy = _rights(Kept.of(args.work, large, problems).rows("large-greedy", Majority(), 1, sampling=GREEDY))
    kept = Kept.of(args.work, engine, problems)
    bins, members = difficulty(kept, args.num_bin_samples)
    budgets = sorted({min(trade.num_generations, args.max_generations) for trade in trades})
    accuracies, missing = searched(kept, args, budgets)
    paths = ("json", "work", "large", "policy", "prm")
    settings = {name: value for name, value in vars(args).items() if name not in paths}
    report = {"hardware": hardware(), "versions": versions(), "commit": commit(), "settings": settings}
    report |= {"params_small": params[0], "params_large": params[1], "size_ratio": size_ratio}
    report |= {
        "accuracy_large": float(np.mean(greedy)),
        "bins": [
            {"bin": bins.describe(index), "num_problems": len(found), "accuracy_large": float(np.mean(greedy[found]))}
            for index, found in enumerate(members)
        ],
    }
    rows = []
    for trade in trades:
        budget = min(trade.num_generations, args.max_generations)
        facts = {"version": trade.version, "R": trade.token_ratio, "generations_allowed": trade.num_generations}
        for strategy, by_budget in accuracies.items():
            if budget in by_budget:
                spent, rights = by_budget[budget]
                facts_here = facts | {"strategy": strategy, "budget": spent}
                rows += [facts_here | row for row in compared(rights, greedy, members)]
    return report | {"rows": rows, "missing": missing}


@dataclass(frozen=True)
class Kept:
    """Searches of the same problems by one engine, whose rows are kept in a folder as problems are finished."""

    folder: Path
    engine: Engine
    problems: Sequence[Problem]
    config: dict  # what every row depends on: models and problems

    @classmethod
    def of(cls, folder: Path, engine: Engine, problems: Sequence[Problem]) -> Kept:
        parts = {name: getattr(engine, name) for name in ("policy", "prm", "reviser")}
        config = {name: checkpoint_digest(llm.folder) for name, llm in parts.items() if llm is not None}
        return cls(folder, engine, problems, config | {"problems": problems_digest(problems)})

    def rows(
        self,
        name: str,
        strategy: Strategy | Planner,
        budget: int,
        more: dict | None = None,
        measure: Callable[[SearchResult], dict] = lambda result: {},
        **options,
    ) -> list[Row]:
        """A row per problem: `correct`, and what `measure` says of a result; `more` is what else rows depend on.

        Raises JournalInUse, a ValueError, where another process is making them.
        """
        config = self.config | {"name": name, "budget": budget, **(more or {})}
        config |= {key: str(value) for key, value in options.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name.replace(':', '_')}-{budget}-{_digest(config)[:12]}.ledger"

        def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
            problems = [self.problems[index] for index in todo]
            for position, result in self.engine.search_iter(problems, strategy, budget, **options):
                named = {"id": result.problem.id, "seed": result.seed}
                yield todo[position], named | {"correct": bool(result.correct)} | measure(result)

        label = f"{name}, {budget} generations{''.join(f', {key} {options[key]}' for key in options if key == 'seed')}:"
        run_rows(path, config, len(self.problems), make_rows, label)
        rows, _ = read_rows(path, config, len(self.problems))
        if len(rows) < len(self.problems):
            raise JournalInUse(
                f"{path} is being made by another process: {len(rows)} of {len(self.problems)} are there"
            )
        return [rows[index] for index in range(len(self.problems))]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def difficulty(kept: Kept, num_samples: int) -> tuple[Bins, list[np.ndarray]]:
    """Quintiles of the policy's pass@1, easiest first, and the problems (positions) of each."""
    oracle, grade = Predictor("oracle", num_samples, is_reused=False), kept.engine.task.grade
    strategy = Sampled(oracle, is_judged=False)
    rows = kept.rows("bins", strategy, num_samples, measure=lambda samples: {"ease": oracle.value(samples, grade)})
    eases = [row["ease"] for row in rows]
    bins = Bins.quantiles(eases)
    indices = np.array([bins.index(ease) for ease in eases])
    return bins, [np.flatnonzero(indices == index) for index in range(bins.count)]


def searched(
    kept: Kept, args: argparse.Namespace, budgets: Sequence[int]
) -> tuple[dict[str, dict[int, tuple[int, np.ndarray]]], list[dict]]:
    """By strategy and budget: the generations given and each problem's share of right answers; and what is missing."""
    found: dict[str, dict[int, tuple[int, np.ndarray]]] = {}
    missing = []
    for name in args.strategies:
        for budget in budgets:
            try:
                strategy, more = strategy_of(name, args.calibration)
                spent = spendable(strategy, budget)
                with warnings.catch_warnings():
                    warnings.simplefilter("error", CalibrationWarning)  # its fallback is another strategy
                    runs = [_rights(kept.rows(name, strategy, spent, more, seed=seed)) for seed in args.seeds]
            except JournalInUse:
                raise
            except (ValueError, CalibrationWarning) as error:
                missing.append({"strategy": name, "budget": budget, "reason": str(error)})
                continue
            found.setdefault(name, {})[budget] = (spent, np.mean(runs, axis=0))
    return found, missing


def strategy_of(name: str, calibration: str) -> tuple[Strategy | Planner, dict]:
    """A strategy by its name, and what its rows depend on beside it: the calibration's contents."""
    if name != ComputeOptimal.name:
        return parse_strategy(name), {}
    path = calibration_file(calibration)
    return ComputeOptimal(path), {"calibration": _digest(Path(path).read_text())}


def spendable(strategy: Strategy | Planner, budget: int) -> int:
    """The largest number of generations up to a budget that the strategy can spend. Raises its ValueError for none."""
    for each in range(budget, 0, -1):
        try:
            strategy.groups(each)
            return each
        except ValueError as error:
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
