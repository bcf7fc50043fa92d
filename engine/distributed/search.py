"""One search per problem, each whole on one replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig, SearchConfig
from engine.distributed.driver import drive
from engine.distributed.ray_pool import RayPool, Replicas, Worker
from engine.engine import Engine
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
    check_on_error(on_error)
    task = get_task(models.task)
    problems = [task.as_problem(problem, index) for index, problem in enumerate(problems)]
    order = sorted(range(len(problems)), key=lambda index: -len(problems[index].prompt))
    make = _Make(models, strategy, config, convert)
    with closing(RayPool(replicas, make, problems.__getitem__)) as pool:
        for index, value in drive(pool, order):
            raise_error(value, on_error)
            yield index, value


@dataclass(frozen=True)
class _Make:
    """Makes a worker, in the process of its replica."""

    models: EngineConfig
    strategy: Strategy | Planner
    config: SearchConfig
    convert: Callable[[SearchResult], Any] | None

    def __call__(self) -> Worker:
        return _Searcher(self)


class _Searcher(Worker):
    def __init__(self, given: _Make):
        self._given = given
        self._engine = Engine.from_config(given.models)

    def window(self) -> int:
        return self.window_of(self._engine.policy, self._given.strategy.rows(self._given.config.budget))

    async def do(self, item: Problem) -> Any:
        given = self._given
        result = await self._engine.submit(item, given.strategy, given.config)
        return result if given.convert is None else given.convert(result)
