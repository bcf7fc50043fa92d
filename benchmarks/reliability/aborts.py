"""Searches that are given up at random leak nothing: `python -m benchmarks.reliability.aborts [--problems N]`.

Problems are searched in groups, each by a random strategy, in pools so small that branches are suspended. A share of
the groups is given up at a random moment: its iterator is closed, or a verifier raises an error, KeyboardInterrupt, or
the signal of Ctrl-C; between groups come calls that are refused. In the end every block must be free, and every
problem that was answered must have the answers, scores and tree that it has in large pools where nothing is given up.
The exit status is 1 where that is not so.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.options import check_counts, make_parser, settings
from engine.engine import Engine
from engine.errors import UserError
from engine.loading import clear_caches
from engine.reports.progress import Progress
from engine.results.provenance import provenance, write_json
from engine.runtime import LLM
from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions, Strategy
from engine.tasks import take_problems
from engine.types import Problem, SearchResult

STRATEGIES = (
    *(Majority(), BestOfN(), BeamSearch(width=2), DVTS(width=2), Rebase(), Adaptive(batch=2)),
    *(Lookahead(width=2, lookahead=1), Revisions(parallel=2)),
)
BUDGET, MAX_TOKENS = 4, 32
NUM_BLOCKS, MAX_BATCH = 24, 24  # a search of one problem takes up to 20 blocks
MAX_GROUP, MAX_CALLS = 6, 40  # problems; calls of a verifier until it raises
ABORTS = ("closed", "error", "interrupt", "ctrl-c")
ABORTED_SHARE, REFUSED_SHARE = 0.5, 0.2  # of the groups
REFUSED = ({"budget": 4.0}, {"seed": None}, {"max_tokens": 0}, {"sampling": 1.0}, {"verifier": "judge"})


class Abort(Exception):
    """What a verifier raises to end its search."""


@dataclass(frozen=True)
class Group:
    """Problems that are searched together, and whether and when they are given up."""

    problems: tuple[Problem, ...]
    strategy: Strategy
    verifier: str  # "prm", "orm"; where a verifier raises, or "parity" is drawn, it is a function
    seed: int
    abort: str | None = None
    at: int = 0  # results taken, or calls of the verifier


def parity(_prompt: str, steps: list[str]) -> float:
    """A verifier without a model: a score for the last step that depends on its text alone."""
    return 0.25 + 0.5 * (sum(map(ord, steps[-1])) % 2)


def make_groups(problems: Sequence[Problem], rng: random.Random) -> list[Group]:
    """Groups of random size, strategy and fate."""
    groups, rest = [], list(problems)
    while rest:
        size = rng.randint(1, MAX_GROUP)
        members, rest = tuple(rest[:size]), rest[size:]
        strategy = rng.choice(STRATEGIES)
        abort = rng.choice(ABORTS) if rng.random() < ABORTED_SHARE else None
        is_judged = strategy.is_scored and abort not in (None, "closed")
        verifier = "parity" if is_judged else "orm" if strategy.revises else rng.choice(("prm", "parity"))
        if abort is not None and not is_judged:
            abort = "closed"
        at = rng.randint(1, MAX_CALLS) if is_judged else rng.randrange(size)
        groups.append(Group(members, strategy, verifier, rng.randrange(1 << 20), abort, at))
    return groups


def trap(abort: str, at: int) -> Callable[[str, list[str]], float]:
    """`parity`, whose call number `at` gives the search up."""
    num_calls = 0

    def judge(prompt: str, steps: list[str]) -> float:
        nonlocal num_calls
        num_calls += 1
        if num_calls == at and abort == "ctrl-c":
            signal.raise_signal(signal.SIGINT)
        elif num_calls == at:
            raise Abort if abort == "error" else KeyboardInterrupt
        return parity(prompt, steps)

    return judge


def search(engine: Engine, group: Group) -> Iterator[tuple[str, tuple]]:
    """(problem id, all that must not depend on what else happens) of each problem, until the group is given up.

    Raises what ends the search.
    """
    judge = {"parity": parity}.get(group.verifier, group.verifier)
    if group.abort not in (None, "closed"):
        judge = trap(group.abort, group.at)
    options = {"seed": group.seed, "max_tokens": MAX_TOKENS, "verifier": judge}
    results = engine.search_iter(group.problems, group.strategy, BUDGET, **options)
    try:
        for number, (_, result) in enumerate(results):
            if group.abort == "closed" and number == group.at:
                raise Abort
            yield result.problem.id, outcome(result)
    finally:
        results.close()


def outcome(result: SearchResult) -> tuple:
    return result.answer, result.candidates, result.tree, result.num_generations


def run(engine: Engine, groups: Sequence[Group], rng: random.Random, progress: Progress) -> tuple[dict, Counter]:
    """The outcomes of the problems that were answered, by id, and how many groups ended how."""
    outcomes: dict[str, tuple] = {}
    counts: Counter[str] = Counter()
    for group in groups:
        if rng.random() < REFUSED_SHARE:
            refuse(engine, group, rng.choice(REFUSED))
            counts["refused"] += 1
        try:
            outcomes |= search(engine, group)
        except (Abort, KeyboardInterrupt):
            counts[group.abort] += 1
        for _ in group.problems:
            progress.advance(f"{counts.total()} aborts and refusals")
    return outcomes, counts


def refuse(engine: Engine, group: Group, options: dict) -> None:
    """A call that raises UserError, and has to change nothing."""
    try:
        engine.search(group.problems, BestOfN(), **{"budget": BUDGET, **options})
    except UserError:
        return
    raise AssertionError(f"the engine takes {options}")


def leaked_blocks(engine: Engine) -> int:
    """KV blocks that are not free once the cached prefixes are forgotten. Raises where a pool is inconsistent."""
    clear_caches(engine)
    models: list[LLM] = [llm for llm in (engine.policy, engine.prm, engine.orm, engine.reviser) if llm is not None]
    for llm in models:
        llm.runner.tree.check_integrity()
        assert not llm.runner.has_work, f"the model at {llm.folder} has work left"
        assert not llm.runner.store.resident, f"the model at {llm.folder} holds segments"
    return sum(llm.runner.tree.num_blocks - llm.runner.tree.num_free_blocks for llm in models)


def measure(num_problems: int, seed: int) -> dict[str, object]:
    """The figures of the report."""
    rng = random.Random(seed)
    engine, large = Engine.load("home", num_blocks=NUM_BLOCKS, max_batch=MAX_BATCH), Engine.load("home")
    groups = make_groups(take_problems(engine.task, "test", num_problems), rng)
    started = time.perf_counter()
    with Progress("problems:", num_problems) as progress:
        outcomes, counts = run(engine, groups, rng, progress)
    seconds = time.perf_counter() - started
    leaked = leaked_blocks(engine)
    with Progress("undisturbed:", len(outcomes)) as progress:
        num_different = compare(large, groups, outcomes, progress)
    return {
        "problems": num_problems,
        "groups": len(groups),
        "answered": len(outcomes),
        "aborts": {name: counts[name] for name in (*ABORTS, "refused")},
        "suspensions": engine.policy.runner.num_suspensions,
        "blocks_leaked": leaked,
        "answers_changed": num_different,
        "seconds": round(seconds, 1),
    }


def compare(engine: Engine, groups: Sequence[Group], outcomes: dict[str, tuple], progress: Progress) -> int:
    """How many of the outcomes are not those of an undisturbed engine, in which nothing is given up."""
    num_different = 0
    for group in groups:
        answered = tuple(problem for problem in group.problems if problem.id in outcomes)
        for name, result in search(engine, Group(answered, group.strategy, group.verifier, group.seed)):
            num_different += result != outcomes[name]
            progress.advance()
    return num_different


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("reliability.aborts", __doc__)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the groups, and of when they are given up")
    args = parser.parse_args(arguments)
    check_counts(parser, args)
    figures = measure(args.problems, args.seed)
    write_json(args.json, provenance() | {"settings": settings(args), "figures": figures})
    for name, value in figures.items():
        print(f"{name:16} {value}")
    return 1 if figures["blocks_leaked"] or figures["answers_changed"] else 0


if __name__ == "__main__":
    sys.exit(main())
