"""Engines over tiny models, and what is asked of every one of them after use."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.accounting import Ledger
from engine.config import SearchConfig
from engine.engine import Engine
from engine.model import load_trunk_head, read_config, resolve_dtype
from engine.runtime import LLM
from engine.runtime.runner import Runner
from engine.search import Answers, Models, run_search
from engine.types import Problem, SearchResult
from engine.verifiers.prm import PRMVerifier
from tests.tiny import tiny_policy, tiny_prm, tiny_trunk_head

NAN = float("nan")
MAX_TICKS = 20_000  # a test that needs more is not coming to an end

# Three share two blocks of prompt and two the whole of it; the last two share nothing.
STEM = "?5?2?=c;d3?1?4?;?0?3?1?=e;b2?4?5?0?"
PROBLEMS = [
    Problem("a", STEM + ";a1?\n", "0"),
    Problem("b", STEM + ";f3?;?2?=b\n", "0"),
    Problem("c", STEM + ";a1?\n", "0"),
    Problem("d", "?3?5?=a\n", "0"),
    Problem("e", "f0?1?4?\n", "0"),
]


@dataclass(frozen=True)
class Folders:
    policy: Path
    prm: Path
    two_label_prm: Path
    trunk_head: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("models")
    return Folders(
        tiny_policy(folder / "policy"),
        tiny_prm(folder / "prm"),
        tiny_prm(folder / "two_label_prm", seed=3, num_labels=2),
        tiny_trunk_head(folder / "trunk_head"),
    )


def load_llm(folder: Path, *, num_blocks: int = 512, max_chunk: int = 1024, max_batch: int = 256, **options) -> LLM:
    """A model whose unused KV is NaN, so that reading any of it shows."""
    llm = LLM.load(folder, num_blocks=num_blocks, max_batch=max_batch, **options)
    llm.runner.max_chunk = max_chunk
    llm.runner.pool.k.fill_(NAN)
    llm.runner.pool.v.fill_(NAN)
    return llm


def load_engine(
    folders: Folders,
    *,
    num_blocks: int = 512,
    prm_blocks: int | None = None,
    dtype: str = "float32",
    has_trunk_head: bool = False,
    shares_steps: bool = True,
    **options,
) -> Engine:
    """An engine with a PRM whose ticks are counted and bounded."""
    head = None
    if has_trunk_head:
        head = load_trunk_head(folders.trunk_head, read_config(folders.policy), resolve_dtype(dtype))
    engine = Engine(
        load_llm(folders.policy, num_blocks=num_blocks, dtype=dtype, trunk_head=head, **options),
        prm=load_llm(folders.prm, num_blocks=prm_blocks or num_blocks, dtype=dtype, **options),
        shares_steps=shares_steps,
    )
    for runner in runners(engine):
        bound_ticks(runner)
    return engine


def models(engine: Engine) -> list[LLM]:
    return [engine.policy, engine.prm]


def runners(engine: Engine) -> list[Runner]:
    return [llm.runner for llm in models(engine)]


def bound_ticks(runner: Runner) -> None:
    """A runner that is ticked without end fails the test; `max_used` is the most blocks it has held."""
    tick, num_calls = runner.tick, [0]
    runner.max_used = 0

    def counted(max_forwards: int = 1) -> None:
        num_calls[0] += 1
        assert num_calls[0] <= MAX_TICKS, "no end in sight: a search waits for what never comes"
        tick(max_forwards)
        tree = runner.tree
        runner.max_used = max(runner.max_used, tree.num_blocks - tree.num_free_blocks - tree.num_cached_blocks)

    runner.tick = counted


def assert_idle(*used: Runner) -> None:
    """Nothing is open, queued or lost."""
    for runner in used:
        tree = runner.tree
        tree.check_integrity()
        assert tree.num_open == 0
        assert tree.num_free_blocks + tree.num_cached_blocks == tree.num_blocks
        assert not runner.store.resident
        assert not runner.has_work


def fingerprint(result: SearchResult) -> str:
    """All that must not depend on what else runs: every token, every bit of every score."""
    tokens = result.ledger.tokens
    spent = [tokens[name] for name in ("generated", "lookahead")]
    return repr((result.problem.id, result.answer, result.candidates, result.tree, result.num_errors, spent))


def searches(engine: Engine, problems: Sequence[Problem], strategy, budget: int, **options) -> Iterator[Coroutine]:
    """The coroutines that Engine.search would run."""
    models = Models(engine._policy, PRMVerifier(engine.prm, engine.policy))
    config = SearchConfig(**{"budget": budget, "max_tokens": 40, **options})
    for problem in problems:
        yield run_search(problem, strategy, models, config, Answers(engine.task.extract), ledger=Ledger())
