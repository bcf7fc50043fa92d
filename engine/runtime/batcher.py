"""Drives searches: coroutines that wait for models, without a barrier between problems."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.interrupts import Uninterrupted
from engine.runtime.garbage import fewer_collections
from engine.runtime.requests import Request
from engine.runtime.runner import MAX_FORWARDS, Runner

_MIN_FEED_TOKENS = 512  # a verifier runs once so many tokens wait for it ...
_MAX_WAIT_TICKS = 4  # ... or has waited for so many forwards of the policy


@dataclass(eq=False)
class _Task:
    index: int
    search: Coroutine[Request, None, Any]
    waits_for: Request | None = None


class Batcher:
    """Runs many searches over the same models.

    `runners[0]` samples; the others sample too (they have an LM head) or are verifiers', as far as they
    are known (whatever model a search waits for is run). A search is started as soon as the first one's
    batch has room, and woken when the request that it awaits is done.
    """

    def __init__(self, runners: Sequence[Runner]):
        self.runners = list(runners)
        self._waited = [0] * len(self.runners)

    def run(self, searches: Iterable[Coroutine[Request, None, Any]], rows_each: int) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) as searches end; `rows_each` is how many branches each may sample at once.

        An error in a search ends it alone: it is yielded in the place of its result. Searches that
        are still running when the iterator is closed are closed with it, as they are on Ctrl-C, which
        takes effect between two forwards: the models can be used again after it. Meanwhile Python's garbage collector
        runs less often.
        """
        with fewer_collections():
            yield from self._run(searches, rows_each)

    def _run(self, searches: Iterable[Coroutine[Request, None, Any]], rows_each: int) -> Iterator[tuple[int, Any]]:
        rows = self.runners[0].rows
        # So many problems that most places are taken; no more, as the KV of fewer stays in a CPU's cache.
        num_wanted = rows.max_rows + rows.max_rows // (2 if rows.num_slots > rows.max_rows else 1)
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
                with uninterrupted:
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
            for task in waiting:
                task.search.close()

    def _wake(self, task: _Task, ended: list[tuple[int, Any]]) -> bool:
        """Lets a search go on; whether it has ended: then its index and result are put into `ended`."""
        try:
            task.waits_for = task.search.send(None)
        except StopIteration as stop:
            ended.append((task.index, stop.value))
            return True
        except Exception as error:
            ended.append((task.index, error))
            return True
        if task.waits_for.runner not in self.runners:  # the verifier is someone's own, over a model of ours
            self.runners.append(task.waits_for.runner)
            self._waited.append(0)
        return False

    def _has_blocks(self, rows_each: int, has_others: bool) -> bool:
        """Whether every model has some blocks for each branch of one more problem."""
        return not has_others or all(
            runner.tree.num_free_blocks + runner.tree.num_cached_blocks >= 4 * rows_each for runner in self.runners
        )

    def tick(self) -> None:
        """One forward of each that samples, and of each verifier that has enough to do; more where one alone works."""
        working = [i for i, runner in enumerate(self.runners) if runner.has_work]
        samplers = [i for i in working if i == 0 or self.runners[i].lm_head is not None]
        for i in samplers:
            self.runners[i].tick(1 if len(working) > 1 else MAX_FORWARDS)
        for i in working:
            if i in samplers:
                continue
            runner = self.runners[i]
            if runner.is_waiting and samplers:
                continue  # on a GPU its last forward runs beside the others'
            self._waited[i] += 1
            is_due = self._waited[i] >= _MAX_WAIT_TICKS or runner.feeding.num_tokens >= _MIN_FEED_TOKENS
            if is_due or runner.is_in_flight or not samplers:
                runner.tick()
                self._waited[i] = 0
