"""Questions labelled by rollouts, each whole on one replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from engine.distributed.driver import drive
from engine.distributed.ray_pool import RayPool, Replicas, Worker
from engine.runtime import LLM
from engine.runtime.driver import Driver
from engine.training.rollouts import LabelledAnswers, RolloutRecipe, labeller, rows_each, settled
from engine.types import Problem


def label(
    recipe: RolloutRecipe,
    todo: Sequence[int],
    problems: Sequence[Problem],
    model: Mapping[str, Any],
    replicas: Replicas,
    on_error: str = "raise",
) -> Iterator[tuple[int, LabelledAnswers]]:
    """Yields (question index, labelled answers) as questions are finished, by replicas; else as `generate`.

    `model` holds the arguments of `LLM.load`. What is lost with a replica is labelled again by others.
    """
    with closing(RayPool(replicas, _Make(recipe, dict(model)))) as pool:
        pool.assign(lambda index: (problems[index],), rows_each(recipe))
        for index, labelled in drive(pool, todo):
            yield index, settled(labelled, on_error)


@dataclass(frozen=True)
class _Make:
    """Makes a worker, in the process of its replica."""

    recipe: RolloutRecipe
    model: dict[str, Any]

    def __call__(self) -> Worker:
        return _Labeller(self)


class _Labeller(Worker):
    def __init__(self, given: _Make):
        self.llm, self._rows = LLM.load(**given.model), rows_each(given.recipe)
        self._label, self._driver = labeller(self.llm, given.recipe), Driver()

    async def do(self, item: Problem) -> LabelledAnswers:
        loop, labelled = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def deliver(outcome: LabelledAnswers | Exception) -> None:
            give = labelled.set_exception if isinstance(outcome, BaseException) else labelled.set_result
            loop.call_soon_threadsafe(give, outcome)

        once = (self._label(item) for _ in range(1))
        self._driver.start(self._driver.job([self.llm], once, self._rows), deliver)
        return await labelled
