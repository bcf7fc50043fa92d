"""The figures of the home models that their model cards state.

`python -m benchmarks.paper.home --split validation` prints, and with `--json X` writes: greedy, pass@1,
majority@16 and pass@16 accuracy, pass@1 by fifth of difficulty, the share of wrong steps that the
PRM ranks below the right ones, and what becomes of answers along 16 chains of 8 revisions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.options import make_parser
from benchmarks.paper.chains import Attempts
from benchmarks.paper.settings import CONTEXT
from engine import BestOfN, Engine, Majority, Revisions, SearchResult
from engine.commands import run_command
from engine.engine import DEFAULT_SAMPLING
from engine.reports.progress import Progress
from engine.results.provenance import provenance, write_json
from engine.search import Strategy, vote
from engine.tasks import take_problems
from engine.types import GREEDY
from engine.verifiers.figures import auc


def fifths(values: Sequence[float]) -> list[float]:
    """Means of the values' sorted fifths, the hardest first."""
    ranked, size = sorted(values), len(values)
    cuts = [round(i * size / 5) for i in range(6)]
    return [sum(ranked[a:b]) / max(1, b - a) for a, b in itertools.pairwise(cuts)]


def policy_figures(greedy: Sequence[SearchResult], sampled: Sequence[SearchResult]) -> dict:
    """Accuracies of single answers, votes and any-of-n over the same problems."""
    passed = [
        sum(candidate.answer == result.problem.answer for candidate in result.candidates) / result.budget
        for result in sampled
    ]
    count = len(sampled)
    budget = sampled[0].budget
    return {
        "greedy": sum(bool(result.correct) for result in greedy) / count,
        "pass@1": sum(passed) / count,
        f"majority@{budget}": sum(bool(result.correct) for result in sampled) / count,
        f"pass@{budget}": sum(share > 0 for share in passed) / count,
        "pass@1 by fifth": fifths(passed),
        "unfinished": sum(c.finish != "eos" for r in sampled for c in r.candidates) / (count * budget),
    }


def verifier_figures(engine: Engine, results: Sequence[SearchResult]) -> dict:
    """How well step scores tell whether a step is the first wrong one of its answer (exact, by the task)."""
    good: list[float] = []
    first_wrong: list[float] = []
    for result in results:
        for candidate in result.candidates:
            steps = candidate.text.splitlines(keepends=True)
            wrong = engine.task.first_wrong_step(result.problem, steps)
            end = len(candidate.scores) if wrong < 0 else wrong
            good += candidate.scores[:end]
            first_wrong += candidate.scores[end : end + 1]
    return {
        "accuracy": sum(bool(result.correct) for result in results) / len(results),
        "right steps": len(good),
        "first wrong steps": len(first_wrong),
        "mean score of right steps": sum(good) / max(1, len(good)),
        "mean score of first wrong steps": sum(first_wrong) / max(1, len(first_wrong)),
        "step auc": auc([*good, *first_wrong], [True] * len(good) + [False] * len(first_wrong)),
    }


def reviser_figures(results: Sequence[SearchResult]) -> dict:
    """Accuracy by place in a chain of revisions, what the next attempt does to it, and votes over the attempts."""
    rows = {
        index: {
            "seed": result.seed,
            "chains": [candidate.address[0] for candidate in result.candidates],
            "answers": [candidate.answer for candidate in result.candidates],
        }
        for index, result in enumerate(results)
    }
    golds = [result.problem.answer for result in results]
    attempts = Attempts.of([rows], golds)
    firsts = [[each for each in result.candidates if len(each.address) == 1] for result in results]
    num_right = sum(vote(each, "majority")[0] == gold for each, gold in zip(firsts, golds, strict=True))
    return {
        "accuracy by attempt": [point["accuracy"][0] for point in attempts.pass_rates()],
        "right attempts followed by a wrong one": attempts.turned(is_right=True),
        "wrong attempts followed by a right one": attempts.turned(is_right=False),
        "majority of the first attempts": num_right / len(results),
        "majority of all attempts": sum(bool(result.correct) for result in results) / len(results),
    }


def figures_of(engine: Engine, options: argparse.Namespace) -> dict:
    """The figures of every model that the engine has."""
    problems = take_problems(engine.task, options.split, options.num_problems)
    judges = [("prm", engine.prm is not None), ("trunk", engine.policy.has_score_head)]
    judges = [name for name, is_there in judges if is_there]
    with Progress("searches:", 2 + len(judges) + (engine.reviser is not None)) as progress:

        def searched(strategy: Strategy, budget: int, **more: object) -> list[SearchResult]:
            results = engine.search(problems, strategy, budget, **more)
            progress.advance()
            return results

        greedy = searched(Majority(), 1, sampling=GREEDY)
        figures: dict = {
            "split": options.split,
            "problems": len(problems),
            "temperature": DEFAULT_SAMPLING.temperature,
            "policy": policy_figures(greedy, searched(Majority(), 16, seed=options.seed)),
        }
        for name in judges:
            results = searched(BestOfN(), 16, seed=options.seed, verifier=name)
            figures[name] = verifier_figures(engine, results)
        if engine.reviser is not None:
            strategy = Revisions(parallel=16, context=CONTEXT, vote="majority")
            figures["reviser"] = reviser_figures(searched(strategy, 128, seed=options.seed))
    return figures


def home_parser(name: str, doc: str, num_problems: int) -> argparse.ArgumentParser:
    """The options of what measures the home models, or others in their place, on a split of the task."""
    parser = make_parser(name, doc)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num-problems", type=int, default=num_problems)
    parser.add_argument("--seed", type=int, default=0)
    for part, default in {"policy": "home", "prm": None, "reviser": None}.items():
        parser.add_argument(f"--{part}", default=default)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = home_parser("paper.home", __doc__, num_problems=500)
    parser.add_argument("--trunk-head")
    return run_command(partial(run, parser.parse_args(arguments)))


def run(options: argparse.Namespace) -> None:
    """Searches, prints the figures and writes them."""
    engine = Engine.load(options.policy, prm=options.prm, trunk_head=options.trunk_head, reviser=options.reviser)
    figures = figures_of(engine, options) | provenance()
    print(json.dumps(figures, indent=1))
    write_json(options.json, figures)


if __name__ == "__main__":
    sys.exit(main())
