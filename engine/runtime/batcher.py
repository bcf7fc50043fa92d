"""Drives searches: coroutines that wait for models, without a barrier between problems."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from engine.interrupts import Uninterrupted
from engine.runtime.garbage import fewer_collections
from engine.runtime.llm import LLM
from engine.runtime.one_thread import OneThread
from engine.runtime.requests import Request
from engine.runtime.runner import MAX_FORWARDS

_MIN_PREFILL_TOKENS = 512  # a verifier runs once this many tokens wait for it ...
_MAX_WAIT_TICKS = 4  # ... or once it has waited for this many forwards of the policy


@dataclass(eq=False)
class _Task:
    index: int
    search: Coroutine[Request, None, Any]
    waits_for: Request | None = None


class Batcher:
    """Runs many searches over the same models.

    The first model generates. The others may be verifiers, or generate too. Further models that a search waits for are
    added as they are met. A search is started as soon as the first model's batch has room, and woken when the request
    that it awaits is done.
    """

    def __init__(self, models: Sequence[LLM], guard: OneThread | None = None):
        """`guard` is entered for each step of the iteration, and so are the models' own."""
        self.guard = guard
        self.runners = [llm.runner for llm in models]
        self._waited = [0] * len(self.runners)  # ticks of the policy since each last ran with work pending

    def run(self, searches: Iterable[Coroutine[Request, None, Any]], rows_each: int) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) as searches end; `rows_each` is how many branches each may generate at once.

        An error ends its search alone and is yielded in the place of the result. Searches that still run when the
        iterator is closed are closed with it. Ctrl-C does the same, between two forwards, so the models can be used
        again afterwards. Python's garbage collector runs less often during the iteration.
        """
        with fewer_collections():
            yield from self._run(searches, rows_each)

    def _run(self, searches: Iterable[Coroutine[Request, None, Any]], rows_each: int) -> Iterator[tuple[int, Any]]:
        table = self.runners[0].table
        # Enough problems that most rows are taken, and no more, because the KV of fewer stays in a CPU's cache.
        num_wanted = table.batch_size + table.batch_size // (2 if table.num_rows > table.batch_size else 1)
        max_active = max(1, -(-num_wanted // rows_each))
        waiting: list[_Task] = []
        pending = enumerate(searches)
        is_exhausted = False
        uninterrupted = Uninterrupted()
        try:
            while True:
                while not is_exhausted and len(waiting) < max_active and self._has_blocks(rows_each, bool(waiting)):
                    started = next(pending, None)
                    if started is None:
                        is_exhausted = True
                    else:
                        task = _Task(*started)
                        waiting.append(task)
                ended: list[tuple[int, Any]] = []
                with uninterrupted, self._guards():
                    ready = [task for task in waiting if task.waits_for is None or task.waits_for.is_done]
                    for task in ready:
                        if self._wake(task, ended):
                            waiting.remove(task)
                    if waiting and not ended:
                        self.tick()
                yield from ended
                if not waiting and not ready:
                    return
        finally:
            with ExitStack() as stack:  # closes all, even where one of them raises
                for task in waiting:
                    stack.callback(task.search.close)
                waiting.clear()

    def _guards(self) -> ExitStack:
        """Holds the guard and the models for a step, and raises UserError where another thread is in one."""
        with ExitStack() as stack:
            for each in (self.guard, *(runner.in_use for runner in self.runners)):
                if each is not None:
                    stack.enter_context(each)
            return stack.pop_all()

    def _wake(self, task: _Task, ended: list[tuple[int, Any]]) -> bool:
        """Lets a search go on. If it ends, adds its index and result to `ended` and returns True."""
        try:
            task.waits_for = task.search.send(None)
        except StopIteration as stop:
            ended.append((task.index, stop.value))
            return True
        except Exception as error:
            ended.append((task.index, error))
            return True
        if task.waits_for.runner not in self.runners:  # a user's own verifier may use a model of its own
            self.runners.append(task.waits_for.runner)
            self._waited.append(0)
        return False

    def _has_blocks(self, rows_each: int, has_others: bool) -> bool:
        """Whether every model has some blocks for each branch of one more problem."""
        return not has_others or all(
            runner.tree.num_free_blocks + runner.tree.num_cached_blocks >= 4 * rows_each for runner in self.runners
        )

    def tick(self) -> None:
        """One forward of each model that generates, and of each verifier that has enough to do.

        A model that generates runs several forwards if no other model has work.
        """
        working = [i for i, runner in enumerate(self.runners) if runner.has_work]
        samplers = [i for i in working if i == 0 or self.runners[i].parts.lm_head is not None]
        for i in samplers:
            self.runners[i].tick(1 if len(working) > 1 else MAX_FORWARDS)
        for i in working:
            if i in samplers:
                continue
            runner = self.runners[i]
            if runner.is_waiting and samplers:
                continue  # on a GPU its last forward runs beside the others'
            self._waited[i] += 1
            is_due = self._waited[i] >= _MAX_WAIT_TICKS or runner.prefill.num_tokens >= _MIN_PREFILL_TOKENS
            if is_due or runner.is_in_flight or not samplers:
                runner.tick()
                self._waited[i] = 0
