"""A search that runs while its caller goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

from engine.accounting import Ledger
from engine.runtime.batcher import Job
from engine.search import SearchEvent, Watch
from engine.types import Problem, SearchResult


class SearchHandle:
    """What `Engine.submit` returns.

    `await handle` or `handle.result()` gives the SearchResult, or raises what the search raised, or CancelledError.
    `async for event in handle` gives its events from the first one on, as they happen; the last is "done". `events`
    holds those so far, `ledger` what has been spent so far.
    """

    def __init__(self, problem: Problem, deadline: float | None = None):
        self.problem = problem
        self.ledger = Ledger()
        self.events: list[SearchEvent] = []
        self.watch = Watch(self._tell)
        self._deadline = deadline
        self._future: Future[SearchResult] = Future()
        self._future.add_done_callback(self._cancel_job)
        self._job: Job | None = None
        self._lock = threading.Lock()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def attach(self, job: Job) -> None:
        """Called once, by the engine, with the job that is about to run."""
        self._job = job
        if self._deadline is not None:
            job.deadline = time.monotonic() + self._deadline
            job.when_overdue = self._end_early

    def deliver(self, outcome: SearchResult | BaseException | None) -> None:
        """Called once, by the engine, with what came of the search; None where it was cancelled."""
        if outcome is None:
            self._future.cancel()
        if self._future.set_running_or_notify_cancel():
            if isinstance(outcome, BaseException):
                self._future.set_exception(outcome)
            else:
                stopped_by = "deadline" if self.watch.is_over else None
                self._future.set_result(replace(outcome, stopped_by=stopped_by))
        self._tell(self._last_event(outcome))

    @property
    def is_done(self) -> bool:
        """Whether it has ended, by whatever cause."""
        return self._future.done()

    @property
    def outcome(self) -> SearchResult | None:
        """The result, where there is one already."""
        has_result = self._future.done() and not self._future.cancelled() and self._future.exception() is None
        return self._future.result() if has_result else None

    def cancel(self) -> bool:
        """Ends the search without a result; its KV is free after the forwards that run now. False if it had ended."""
        return self._future.cancel()

    def result(self, timeout: float | None = None) -> SearchResult:
        """Waits, at most `timeout` seconds: then it raises TimeoutError, and the search goes on."""
        return self._future.result(timeout)

    def __await__(self) -> Generator[None, None, SearchResult]:
        """Where the task that awaits is cancelled, the search is."""
        return asyncio.wrap_future(self._future).__await__()

    async def __aiter__(self) -> AsyncIterator[SearchEvent]:
        listener = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._listeners.append(listener)
        try:
            num_seen = 0
            while True:
                listener[1].clear()
                for event in self.events[num_seen:]:
                    num_seen += 1
                    yield event
                    if event.kind == "done":
                        return
                if num_seen == len(self.events):
                    await listener[1].wait()
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def _tell(self, event: SearchEvent) -> None:
        """Hears an event, in the thread that runs the search."""
        with self._lock:
            self.events.append(event)
            for loop, flag in self._listeners:
                with suppress(RuntimeError):  # the loop has been closed, and with it who listened
                    loop.call_soon_threadsafe(flag.set)

    def _last_event(self, outcome: SearchResult | BaseException | None) -> SearchEvent:
        if not isinstance(outcome, SearchResult):
            return SearchEvent("done")
        tokens = sum(node.num_tokens for node in outcome.tree.nodes)
        return SearchEvent("done", answer=outcome.answer, generations=outcome.num_generations, tokens=tokens)

    def _end_early(self) -> None:
        self.watch.is_over = True

    def _cancel_job(self, future: Future[SearchResult]) -> None:
        if future.cancelled() and self._job is not None:
            self._job.is_cancelled = True
