"""How fast labels and scores are made: `python -m benchmarks.throughput.labelling [--json X]`.

Four kinds of work take turns, each over a cold prefix cache, on the home models in float32:

* engine: what `python -m benchmarks.throughput` calls our batched best-of-N, the yardstick: answers of equal length
  that nobody reads.
* rollouts: `ttc rollouts` for some training questions: answers, the rollouts of all their steps, and grading. Its
  tokens are those that the policy drew.
* workers: the same rows by `ttc rollouts --workers N`: N processes that share the threads, their start included.
* scored: best-of-N with the PRM, as the pools of `python -m benchmarks.paper` are made. Its tokens are those drawn,
  and those that the PRM has read: a step that several answers share counts once, as it is read once.

`share` is a kind's median tokens per second over the engine's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.options import check_counts, make_parser, settings
from benchmarks.timing import Run, alternate, median_rate
from engine import LLM, BestOfN, Engine
from engine.loading import clear_caches
from engine.model import resolve_folder
from engine.reports.progress import Progress
from engine.results.provenance import Bystanders, provenance, write_json
from engine.tasks import take_problems
from engine.training.rollouts import RolloutRecipe, generate, questions
from engine.training.workers import generate_in_workers

NUM_NEW = 96  # tokens of the yardstick's answers


def rollouts(llm: LLM, recipe: RolloutRecipe) -> int:
    """Labels some questions; the tokens that were drawn for it."""
    llm.clear_cache()
    requests, queue = [], llm.queue_generate

    def counted(*args, **options):
        requests.append(queue(*args, **options))
        return requests[-1]

    llm.queue_generate = counted
    try:
        for _ in generate(llm, recipe):
            pass
    finally:
        del llm.queue_generate
    return sum(len(result.token_ids) for request in requests for result in request.results)


def rollouts_by_workers(num_workers: int, recipe: RolloutRecipe) -> None:
    """The same labels by several processes."""
    model, problems = {"folder": resolve_folder("home")}, questions(recipe)
    for _ in generate_in_workers(num_workers, model, recipe, range(len(problems)), problems):
        pass


def scored(engine: Engine, num_problems: int, num_answers: int, seed: int) -> int:
    """Searches some problems by best-of-N; tokens drawn, and read by the PRM."""
    clear_caches(engine)
    problems = take_problems(engine.task, "test", num_problems)
    results = engine.search(problems, BestOfN(), num_answers, seed=seed)
    return sum(result.ledger.tokens[kind] for result in results for kind in ("generated", "verified"))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("throughput.labelling", __doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes that share the rollouts")
    parser.add_argument("--num-questions", type=int, default=768, help="whose answers' steps are rolled out")
    parser.add_argument("--num-samples", type=int, default=4, help="answers of a question")
    parser.add_argument("--num-rollouts", type=int, default=8, help="of a step")
    parser.add_argument("--num-problems", type=int, default=24, help="of best-of-N, and of the yardstick")
    parser.add_argument("--num-answers", type=int, default=256, help="per problem of best-of-N, and of the yardstick")
    args = parser.parse_args(arguments)
    check_counts(parser, args)
    return args


def make_sides(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[int], int]]:
    """The calls that are timed, by name: each takes a seed and returns how many tokens it has made.

    `folder` is for the yardstick's checkpoint.
    """
    from benchmarks.throughput.sampling import (  # not in workers: transformers
        sample_answers,
        take_prompts,
        without_end_of_text,
    )

    engine = Engine.load("home")
    endless = LLM.load(without_end_of_text(resolve_folder("home"), folder))
    bare = LLM.load(resolve_folder("home"))  # without a trunk head, as `ttc rollouts` loads it
    prompts = take_prompts(endless, args.num_problems)
    recipe = {name: getattr(args, name) for name in ("num_questions", "num_samples", "num_rollouts")}
    num_drawn: dict[int, int] = {}  # by rollouts, for each seed: no process of `workers` tells

    def labelled(seed: int) -> int:
        num_drawn[seed] = rollouts(bare, RolloutRecipe(**recipe, seed=seed))
        return num_drawn[seed]

    def labelled_by_workers(seed: int) -> int:
        rollouts_by_workers(args.workers, RolloutRecipe(**recipe, seed=seed))
        return num_drawn[seed]

    return {
        "engine": lambda seed: sample_answers(endless, prompts, args.num_answers, NUM_NEW, seed),
        "rollouts": labelled,
        "workers": labelled_by_workers,
        "scored": lambda seed: scored(engine, args.num_problems, args.num_answers, seed),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    bystanders = Bystanders()
    runs = time_sides(args)
    rates = {name: median_rate(side) for name, side in runs.items()}
    report = provenance() | {
        "settings": settings(args) | {"num_new": NUM_NEW},
        "tokens_per_second": rates,
        "share": {name: rate / rates["engine"] for name, rate in rates.items()},
        "runs": {name: [asdict(run) for run in side] for name, side in runs.items()},
    }
    report["hardware"]["others_share"] = bystanders.share()
    write_json(args.json, report)
    table = Table("work", "tokens per second", "share of the engine's")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{report['share'][name]:.0%}")
    Console(width=100).print(table)
    return 0


def time_sides(args: argparse.Namespace) -> dict[str, list[Run]]:
    """Every kind of work in turn, after a warm-up with a seed of its own."""
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(args, Path(folder))
        with Progress("labelling:", len(sides) * (1 + args.repeats)) as progress:
            for name, side in sides.items():
                side(args.repeats)
                progress.advance(f"{name}, warm-up")
            return alternate(sides, args.repeats, progress)


if __name__ == "__main__":
    sys.exit(main())
