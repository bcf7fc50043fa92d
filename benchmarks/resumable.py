"""Runs that take hours: a journal for each, one line per finished problem, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import Engine, Problem
from engine.model.digest import checkpoint_digest
from engine.reports.progress import RunProgress
from engine.results import Journal, JournalInUse, read_journal
from engine.results.digests import problems_digest
from engine.results.rows import Row
from engine.scheduler import Planner
from engine.search import Strategy
from engine.types import SearchResult

MakeRows = Callable[[list[int]], Iterable[tuple[int, Row]]]  # from positions to do, to (position, row)


def run_rows(path: Path, config: dict, num_total: int, make_rows: MakeRows, label: str) -> None:
    """Makes the rows that the journal at `path` lacks; killed, the same call goes on at the problem where it stopped.

    What another process is making is left to it, so that several can share the work. Raises UserError where the
    file was made by other models or settings.
    """
    try:
        opened = Journal(path, config)
    except JournalInUse:
        print(f"{label} left to another process", file=sys.stderr)
        return
    with opened as journal:
        done = journal.done
        todo = [index for index in range(num_total) if index not in done]
        if not todo:
            return
        with RunProgress(label, num_total, [row for index, row in done.items() if index < num_total]) as progress:
            for index, row in make_rows(todo):
                journal.append(index, row)
                progress.add(row)


@dataclass(frozen=True)
class StoredSearches:
    """Searches of the same problems by one engine, whose rows are stored in a folder as problems are finished."""

    folder: Path
    engine: Engine
    problems: Sequence[Problem]
    config: dict  # what every row depends on: models and problems

    @classmethod
    def of(cls, folder: Path, engine: Engine, problems: Sequence[Problem]) -> StoredSearches:
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
        """A row per problem: `correct`, and what `measure` returns for a result.

        `more` is what the rows depend on beside the name, the budget and the options of `Engine.search_iter`.
        Raises JournalInUse, a UserError, where another process is making them.
        """
        config = self.config | {"name": name, "budget": budget, **(more or {})}
        config |= {key: str(value) for key, value in options.items()}
        path = self.folder / f"{name.replace(':', '_')}-{budget}-{digest(config)[:12]}.ledger"

        def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
            problems = [self.problems[index] for index in todo]
            for position, result in self.engine.search_iter(problems, strategy, budget, **options):
                named = {"id": result.problem.id, "seed": result.seed}
                yield todo[position], named | {"correct": bool(result.correct)} | measure(result)

        label = f"{name}, {budget} generations{''.join(f', {key} {options[key]}' for key in options if key == 'seed')}:"
        run_rows(path, config, len(self.problems), make_rows, label)
        return self._whole(path, config)

    def _whole(self, path: Path, config: dict) -> list[Row]:
        rows, _ = read_journal(path, config, len(self.problems))
        if len(rows) < len(self.problems):
            raise JournalInUse(
                f"{path} is being made by another process: {len(rows)} of {len(self.problems)} are there"
            )
        return [rows[index] for index in range(len(self.problems))]


def digest(value: object) -> str:
    """64 hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
