"""What is sampled: pools, an ORM's scores of them, searches, greedy answers of a larger policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.paper.cells import Cell, distinct, revision_cells, search_cells, tier
from benchmarks.paper.models import Models
from benchmarks.paper.pools import Pool, pool_row, short_scores
from benchmarks.paper.settings import BINS_STREAM, Settings
from benchmarks.resumable import run_rows
from engine import Engine
from engine.accounting import Ledger
from engine.loading import clear_caches
from engine.model.digest import checkpoint_digest
from engine.results import read_journal
from engine.results.rows import Row
from engine.runtime import Batcher
from engine.search import BestOfN, Majority
from engine.tasks import take_problems
from engine.types import FINISHED, GREEDY, Problem, SearchResult, Step

SPLIT = "test"


@dataclass(frozen=True)
class Study:
    """One run: settings, models, problems, and where each part of it is kept."""

    settings: Settings
    models: Models
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, settings: Settings, models: Models) -> Study:
        return cls(settings, models, tuple(take_problems(models.engine.task, SPLIT, settings.num_problems)))

    def pool_run(self, seed: int, stream: str = "answers") -> tuple[Path, dict]:
        """The ledger of a pool, and what its rows depend on: not the number of problems, more of them can follow."""
        size = self.settings.num_bin_samples if stream == BINS_STREAM else self.settings.pool_size
        config = self.config("prm") | {"pool": stream, "size": size, "seed": seed}
        return self.settings.work / f"pool-{stream}-{size}-seed{seed}.ledger", config

    def orm_run(self, seed: int) -> tuple[Path, dict]:
        """The ledger of the ORM's scores of a pool."""
        path, config = self.pool_run(seed)
        return path.with_name(f"orm-{path.name}"), config | self.models.digests("orm")

    def cell_run(self, cell: Cell) -> tuple[Path, dict]:
        config = self.config(cell.verifier) | {"cell": cell.file_name, "seed": cell.seed}
        if cell.is_revision:
            config["reviser"] = self.models.reviser_digest(cell.is_baseline)
        return self.settings.work / cell.file_name, config

    def large_run(self) -> tuple[Path, dict]:
        digest = checkpoint_digest(self.models.large.policy.folder)
        return self.settings.work / f"greedy-{digest[:8]}.ledger", {"split": SPLIT, "policy": digest}

    def config(self, verifier: str) -> dict:
        return {"split": SPLIT, **self.models.digests("policy", verifier)}

    def cells(self) -> list[Cell]:
        """All that can run, most valuable first."""
        return sorted(search_cells(self.settings) + self.revisions(), key=lambda cell: tier(cell, self.settings))

    def revisions(self) -> list[Cell]:
        models = self.models
        return [] if "revisions" in models.missing else revision_cells(self.settings, models.revision_verifier)


def draw_pools(study: Study) -> None:
    """The pool of the bins, and one of answers for every seed, all scored by the PRM."""
    seeds = study.settings.seeds
    for seed, stream in [(seeds[0], BINS_STREAM), *((seed, "answers") for seed in seeds)]:
        draw_pool(study, seed, stream)


def draw_pool(study: Study, seed: int, stream: str) -> None:
    path, config = study.pool_run(seed, stream)

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        problems = [_on_stream(study.problems[index], stream) for index in todo]
        for position, result in study.models.engine.search_iter(problems, BestOfN(), config["size"], seed=seed):
            yield todo[position], pool_row(result)

    run_rows(path, config, len(study.problems), make_rows, f"pool of {stream}, seed {seed}:")


def _on_stream(problem: Problem, stream: str) -> Problem:
    """The problem with random numbers of its own for the bins; for answers those that every search has."""
    return replace(problem, id=f"{problem.id}/{stream}") if stream == BINS_STREAM else problem


def score_pool(study: Study, seed: int) -> None:
    """The ORM's scores of a pool of answers, one per distinct answer."""
    path, config = study.orm_run(seed)
    engine = study.models.engine
    pools, _ = read_journal(*study.pool_run(seed), len(study.problems))

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        there = [index for index in todo if index in pools]
        judges = (_judge(engine, study.problems[index], Pool.from_row(pools[index])) for index in there)
        for position, scores in Batcher().run([engine.orm], judges, study.settings.pool_size):
            if isinstance(scores, Exception):
                raise scores
            problem = study.problems[there[position]]
            row = {"id": problem.id, "seed": seed, "strategy": "orm", "scores": short_scores(scores)}
            yield there[position], row

    run_rows(path, config, len(study.problems), make_rows, f"pool scored by the ORM, seed {seed}:")


async def _judge(engine: Engine, problem: Problem, pool: Pool) -> list[float]:
    """One score per distinct answer, 0.0 where it never ended, as a search scores it."""
    judge = engine.resolve_verifier("orm")
    ended = [index for index, each in enumerate(pool.distinct) if each.finish in FINISHED]
    scores = [0.0] * len(pool.distinct)
    if not ended:
        return scores
    root = await judge.open(problem, ledger=Ledger())
    branches = root.fork(len(ended))
    root.close()
    try:
        answers = [[_as_step(engine, pool.distinct[index].text)] for index in ended]
        for index, (score,) in zip(ended, await judge.score(branches, answers), strict=True):
            scores[index] = score
    finally:
        for branch in branches:
            branch.close()
    return scores


def _as_step(engine: Engine, text: str) -> Step:
    """A whole answer as the one step that a verifier of answers is given."""
    ids = engine.policy.encode(text, is_start=False) + list(engine.policy.config.eos_token_ids[:1])
    return Step(tuple(ids), text, "eos")


def run_cells(study: Study, cells: Sequence[Cell]) -> None:
    """Searches, cell by cell."""
    for cell in distinct(cells):
        path, config = study.cell_run(cell)
        engine = study.models.baseline if cell.is_baseline else study.models.engine

        def make_rows(todo: list[int], cell=cell, engine=engine) -> Iterator[tuple[int, Row]]:
            clear_caches(engine)
            problems = [study.problems[index] for index in todo]
            options = {"seed": cell.seed, "verifier": cell.verifier}
            for position, result in engine.search_iter(problems, cell.strategy, cell.budget, **options):
                yield todo[position], cell_row(result, cell)

        label = f"{cell.series}, {cell.budget} generations, seed {cell.seed}:"
        run_rows(path, config, len(study.problems), make_rows, label)


def cell_row(result: SearchResult, cell: Cell) -> Row:
    """The outcome of a search; of revisions every attempt too: its chain, answer and score."""
    nodes, best = result.tree.nodes, result.tree.best
    chosen = [each.text for each in result.candidates if best is not None and each.address == nodes[best].address]
    row: Row = {
        "id": result.problem.id,
        "seed": result.seed,
        "strategy": result.strategy,
        "correct": bool(result.correct),
        "generations": result.num_generations,
        "chosen": chosen[0] if chosen else None,
        "ledger": result.ledger.as_dict(),
        "num_errors": result.num_errors,
    }
    if cell.is_revision:
        row |= {
            "chains": [each.address[0] for each in result.candidates],
            "answers": [each.answer for each in result.candidates],
            "scores": [each.agg_score for each in result.candidates],
            "finishes": [each.finish for each in result.candidates],
        }
    return row


def answer_greedily(study: Study) -> None:
    """The larger policy's one answer to every problem."""
    path, config = study.large_run()

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        problems = [study.problems[index] for index in todo]
        for position, result in study.models.large.search_iter(problems, Majority(), 1, sampling=GREEDY):
            row = {"id": result.problem.id, "seed": 0, "strategy": "greedy", "correct": bool(result.correct)}
            yield todo[position], row | {"ledger": result.ledger.as_dict(), "chosen": result.candidates[0].text}

    run_rows(path, config, len(study.problems), make_rows, "greedy answers of the larger policy:")


STAGES = ("pools", "searches", "revisions", "large", "tables")


def sample(study: Study, only: str | None = None) -> None:
    """Runs what samples, or one stage of it; what cannot run is left out, and the tables say why."""
    missing = study.models.missing
    if only in (None, "pools"):
        draw_pools(study)
        for seed in study.settings.seeds if study.models.has_orm else ():
            score_pool(study, seed)
    if only in (None, "large") and "large" not in missing:
        answer_greedily(study)
    cells = {None: study.cells(), "searches": search_cells(study.settings), "revisions": study.revisions()}
    run_cells(study, cells.get(only, []))
