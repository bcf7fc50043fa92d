"""One search per problem, each whole on one replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig, SearchConfig
from engine.distributed.driver import drive
from engine.distributed.ray_pool import RayPool, Replicas, Worker
from engine.engine import Engine
from engine.loading import clear_caches
from engine.runtime.checks import check_on_error, raise_error
from engine.scheduler import Planner
from engine.search import Strategy
from engine.tasks import get_task
from engine.types import Problem, SearchResult


def search(
    problems: Sequence[str | dict | Problem],
    strategy: Strategy | Planner,
    models: EngineConfig,
    config: SearchConfig,
    replicas: Replicas,
    *,
    convert: Callable[[SearchResult], Any] | None = None,
    on_error: str = "raise",
) -> Iterator[tuple[int, Any]]:
    """Yields (index, result) as problems are finished, in any order, by replicas that each load `models`.

    A result is what `Engine.search` gives for the problem, or what `convert`, which runs where the search ran, makes of
    it. A replica or machine that is lost costs what it had under way, which others do again. Long prompts go first, so
    that short ones fill the end. With `on_error` "yield" what a problem raises stands in the place of its result, a
    ReplicaLost among it, where two replicas were lost with it.
    Raises UserError without Ray or room for a replica; closed before its end, it ends the replicas.
    """
    with closing(Session(models, replicas)) as session:
        yield from session.search_iter(problems, strategy, config, convert=convert, on_error=on_error)


class Session:
    """Replicas that load `models` once, for several searches one after another.

    Each search begins with empty prefix caches, as in a process of its own.
    Raises UserError without Ray or room for a replica.
    """

    def __init__(self, models: EngineConfig, replicas: Replicas):
        self._task, self._num_searches = get_task(models.task), 0
        self._pool = RayPool(replicas, _Make(models))

    def search_iter(
        self,
        problems: Sequence[str | dict | Problem],
        strategy: Strategy | Planner,
        config: SearchConfig,
        *,
        convert: Callable[[SearchResult], Any] | None = None,
        on_error: str = "raise",
    ) -> Iterator[tuple[int, Any]]:
        """The same as `search`. One that is not read to its end leaves its replicas at work: the session is over."""
        check_on_error(on_error)
        problems = [self._task.as_problem(problem, index) for index, problem in enumerate(problems)]
        order = sorted(range(len(problems)), key=lambda index: -len(problems[index].prompt))
        self._num_searches += 1
        number, asked = self._num_searches, self._pool.share(_Asked(strategy, config, convert))
        self._pool.assign(lambda index: (problems[index], number, asked), strategy.rows(config.budget))
        for index, value in drive(self._pool, order):
            raise_error(value, on_error)
            yield index, value

    def close(self) -> None:
        """Ends the replicas, whatever they do."""
        self._pool.close()


@dataclass(frozen=True)
class _Asked:
    """What a search does with every problem."""

    strategy: Strategy | Planner
    config: SearchConfig
    convert: Callable[[SearchResult], Any] | None


@dataclass(frozen=True)
class _Make:
    """Makes a worker, in the process of its replica."""

    models: EngineConfig

    def __call__(self) -> Worker:
        return _Searcher(self.models)


class _Searcher(Worker):
    def __init__(self, models: EngineConfig):
        self._engine = Engine.from_config(models)
        self.llm = self._engine.policy
        self._lock, self._number = asyncio.Lock(), 0  # of the search that `_asked` is about
        self._asked: _Asked | None = None

    async def do(self, item: Problem, number: int, asked: tuple[Awaitable[_Asked]]) -> Any:
        async with self._lock:
            if number != self._number:
                self._asked = await asked[0]  # once, not with every problem
                self._number = number
                clear_caches(self._engine)
        given = self._asked
        result = await self._engine.submit(item, given.strategy, given.config)
        return result if given.convert is None else given.convert(result)
