"""`python -m benchmarks.paper.gates`: whether search can pay on the home task, before anything is measured at length.

Six gates. They need the policy and its PRM and, for two of them, the reviser and the larger policy:

1. the policy: greedy at least 3 points over pass@1, which is 10 to 40 %; pass@16 at least 15 points over majority@16;
   the easiest fifth of the problems at least 85 %, the hardest at most 5 %, two fifths at least between these;
2. with the exact verifier beam search is at least 10 points over best-of-N at 16 and at 64 generations, and loses
   nothing on the easiest fifth;
3. the PRM: its area for first wrong steps against right ones at the same place is at least 0.99; its best-of-16 lies
   within 2 points of the exact verifier's, its beam search within 5 at 16 and within 10 at 64;
4. the larger policy: greedy 50 to 85 %, and under 97 % on the easier half, so that there is something to win;
5. the reviser: second attempts are right at least 4 points more often than first ones;
6. the answer does not give itself away: at the median problem at least 1,000 answers are possible.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.equal_flops.larger_policy import LARGE
from benchmarks.paper.home import home_parser, policy_figures, reviser_figures
from benchmarks.paper.settings import CONTEXT, WIDTH
from engine import BeamSearch, BestOfN, Engine, Majority, Revisions, SearchResult
from engine.commands import run_command
from engine.reports.progress import Progress
from engine.results.provenance import provenance, write_json
from engine.search import Strategy
from engine.tasks import take_problems
from engine.tasks.walks import WalksConfig
from engine.types import GREEDY
from engine.verifiers.figures import first_wrong_area

BUDGETS = (16, 64)
VERIFIERS = ("oracle", "prm")


@dataclass(frozen=True)
class Gate:
    """`conditions` by text, each with whether it holds; `figures` are accuracies, 0..1, or what is named."""

    name: str
    figures: dict = field(default_factory=dict)
    conditions: dict[str, bool] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return all(self.conditions.values())


@dataclass(frozen=True)
class Bench:
    """The problems, the engine, and every search that the gates look at."""

    engine: Engine
    problems: Sequence
    seed: int
    progress: Progress

    def search(self, strategy: Strategy, budget: int, **more: object) -> list[SearchResult]:
        results = self.engine.search(self.problems, strategy, budget, seed=self.seed, **more)
        self.progress.advance()
        return results


def accuracy(results: Sequence[SearchResult], members: Sequence[int] | None = None) -> float:
    chosen = results if members is None else [results[index] for index in members]
    return sum(bool(result.correct) for result in chosen) / len(chosen)


def policy_gate(figures: dict) -> Gate:
    """Of `policy_figures`."""
    hardest, *between, easiest = figures["pass@1 by fifth"]
    conditions = {
        "greedy >= pass@1 + 3": figures["greedy"] >= figures["pass@1"] + 0.03,
        "pass@1 within 10..40": 0.1 <= figures["pass@1"] <= 0.4,
        "pass@16 >= majority@16 + 15": figures["pass@16"] >= figures["majority@16"] + 0.15,
        "easiest fifth >= 85, hardest <= 5": easiest >= 0.85 and hardest <= 0.05,
        "two fifths between": sum(0.05 < share < 0.85 for share in between) >= 2,
    }
    return Gate("1 policy", figures, conditions)


def exact_gate(found: dict, easiest: Sequence[int]) -> Gate:
    """`found`: results by (verifier, strategy, budget)."""
    figures, conditions = {}, {}
    for budget in BUDGETS:
        best, beam = (found["oracle", name, budget] for name in ("best-of-n", "beam"))
        figures |= {f"best-of-{budget}": accuracy(best), f"beam@{budget}": accuracy(beam)}
        conditions[f"beam >= best-of-N + 10 at {budget}"] = accuracy(beam) >= accuracy(best) + 0.1
        no_loss = accuracy(beam, easiest) >= accuracy(best, easiest)
        conditions[f"no loss on the easiest fifth at {budget}"] = no_loss
    return Gate("2 exact verifier", figures, conditions)


def prm_gate(engine: Engine, found: dict) -> Gate:
    """The areas are over all samples of best-of-16."""
    samples = [(result.problem, each) for result in found["prm", "best-of-n", 16] for each in result.candidates]
    steps = [each.text.splitlines(keepends=True) for _, each in samples]
    places = [engine.task.first_wrong_step(problem, own) for (problem, _), own in zip(samples, steps, strict=True)]
    area = first_wrong_area([each.scores for _, each in samples], places, [problem.id for problem, _ in samples])
    figures: dict = asdict(area)
    gaps = {}
    for name, budget in (("best-of-n", 16), ("beam", 16), ("best-of-n", 64), ("beam", 64)):
        own, exact = (accuracy(found[verifier, name, budget]) for verifier in ("prm", "oracle"))
        figures |= {f"{name}@{budget}": own, f"{name}@{budget}, exact": exact}
        gaps[name, budget] = exact - own
    conditions = {
        "area >= 0.99": area.auc_first_wrong >= 0.99,
        "best-of-16 within 2 of exact": gaps["best-of-n", 16] <= 0.02,
        "beam within 5 of exact at 16": gaps["beam", 16] <= 0.05,
        "beam within 10 of exact at 64": gaps["beam", 64] <= 0.1,
    }
    return Gate("3 PRM", figures, conditions)


def larger_gate(large: Sequence[SearchResult], easier: Sequence[int]) -> Gate:
    overall, half = accuracy(large), accuracy(large, easier)
    conditions = {"greedy within 50..85": 0.5 <= overall <= 0.85, "easier half under 97": half < 0.97}
    return Gate("4 larger policy", {"greedy": overall, "greedy on the easier half": half}, conditions)


def reviser_gate(results: Sequence[SearchResult]) -> Gate:
    figures = reviser_figures(results)
    first, second, *_ = figures["accuracy by attempt"]
    return Gate("5 reviser", figures, {"second attempt >= first + 4": second >= first + 0.04})


def answer_gate(answers: Sequence[str]) -> Gate:
    """One letter per walk: as many possible answers as rooms, to the power of walks."""
    possible = WalksConfig().num_rooms ** int(np.median([len(answer) for answer in answers]))
    return Gate("6 answers", {"possible": possible}, {"at least 1,000": possible >= 1000})


def gates(engine: Engine, larger: Engine | None, options: argparse.Namespace) -> list[Gate]:
    """All that can be measured with the models at hand."""
    problems = take_problems(engine.task, options.split, options.num_problems)
    num_searches = 2 + 4 * len(BUDGETS) + (engine.reviser is not None) + (larger is not None)
    with Progress("searches:", num_searches) as progress:
        bench = Bench(engine, problems, options.seed, progress)
        greedy, pool = bench.search(Majority(), 1, sampling=GREEDY), bench.search(Majority(), 16)
        rates = [sum(each.answer == result.problem.answer for each in result.candidates) for result in pool]
        ranked = sorted(range(len(problems)), key=lambda index: -rates[index])
        strategies = {"best-of-n": BestOfN(), "beam": BeamSearch(width=WIDTH)}
        found = {
            (verifier, name, budget): bench.search(strategy, budget, verifier=verifier)
            for verifier in VERIFIERS
            for name, strategy in strategies.items()
            for budget in BUDGETS
        }
        made = [policy_gate(policy_figures(greedy, pool)), exact_gate(found, ranked[: len(ranked) // 5])]
        made.append(prm_gate(engine, found))
        if larger is not None:
            large = Bench(larger, problems, options.seed, progress).search(Majority(), 1, sampling=GREEDY)
            made.append(larger_gate(large, ranked[: len(ranked) // 2]))
        if engine.reviser is not None:
            chains = Revisions(parallel=4, context=CONTEXT, vote="majority")
            made.append(reviser_gate(bench.search(chains, 16)))
    return [*made, answer_gate([problem.answer for problem in problems])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = home_parser("paper.gates", __doc__, num_problems=300)
    parser.add_argument("--large", default=str(LARGE), help="folder of a larger policy; empty for none")
    return run_command(partial(run, parser.parse_args(arguments)))


def run(options: argparse.Namespace) -> None:
    """Searches, prints the gates and writes them."""
    engine = Engine.load(options.policy, prm=options.prm, reviser=options.reviser)
    has_larger = bool(options.large) and Path(options.large).is_dir()
    larger = Engine.load(options.large, task=engine.task.name) if has_larger else None
    made = gates(engine, larger, options)
    for gate in made:
        print(f"gate {gate.name}: {'holds' if gate.holds else 'MISSED'}")
        for text, holds in gate.conditions.items():
            print(f"  {'yes' if holds else 'NO '} {text}")
    rows = [asdict(gate) | {"holds": gate.holds} for gate in made]
    facts = {"split": options.split, "problems": options.num_problems, "seed": options.seed}
    figures = {**facts, "gates": rows, **provenance()}
    print(json.dumps(rows))
    write_json(options.json, figures)


if __name__ == "__main__":
    sys.exit(main())
