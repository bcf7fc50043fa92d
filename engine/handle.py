"""Work that runs while its caller goes on: searches, and samples of a server."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from engine.accounting import Ledger
from engine.runtime.batcher import Job
from engine.search import SearchEvent, Watch
from engine.types import Problem, SearchResult


class Event(Protocol):
    """Something that happened; the last one is "done"."""

    @property
    def kind(self) -> str: ...


Outcome = TypeVar("Outcome")
Told = TypeVar("Told", bound=Event)


class Handle(ABC, Generic[Outcome, Told]):
    """Work of an engine that goes on in its thread.

    `await handle` or `handle.result()` gives what came of it, or raises what it raised, or CancelledError.
    `async for event in handle` gives its events from the first one on, as they happen; the last is "done". `events`
    holds those so far, `ledger` what has been spent so far.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.ledger = Ledger()
        self.events: list[Told] = []
        self._future: Future[Outcome] = Future()
        self._future.add_done_callback(self._cancel_job)
        self._job: Job | None = None
        self._lock = threading.Lock()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def attach(self, job: Job) -> None:
        """Called once, by the engine, with the job that is about to run."""
        self._job = job

    def deliver(self, outcome: Outcome | BaseException | None) -> None:
        """Called once, by the engine, with what came of it; None where it was cancelled."""
        if outcome is None:
            self._future.cancel()
        if self._future.set_running_or_notify_cancel():
            if isinstance(outcome, BaseException):
                self._future.set_exception(outcome)
            else:
                self._future.set_result(self._finished(outcome))
        self._tell(self._last_event(outcome))

    def _finished(self, outcome: Outcome) -> Outcome:
        """The outcome as it is handed out."""
        return outcome

    @abstractmethod
    def _last_event(self, outcome: Outcome | BaseException | None) -> Told:
        """The event "done"."""

    @property
    def is_done(self) -> bool:
        """Whether it has ended, by whatever cause."""
        return self._future.done()

    @property
    def is_waiting(self) -> bool:
        """Whether nothing of it runs yet: the batch is full."""
        return self._job is None or not (self._job.tasks or self._job.is_exhausted)

    @property
    def outcome(self) -> Outcome | None:
        """The result, where there is one already."""
        has_result = self._future.done() and not self._future.cancelled() and self._future.exception() is None
        return self._future.result() if has_result else None

    def cancel(self) -> bool:
        """Ends it without a result; its KV is free after the forwards that run now. False if it had ended."""
        return self._future.cancel()

    def result(self, timeout: float | None = None) -> Outcome:
        """Waits, at most `timeout` seconds: then it raises TimeoutError, and the work goes on."""
        return self._future.result(timeout)

    def __await__(self) -> Generator[None, None, Outcome]:
        """Where the task that awaits is cancelled, so is this."""
        return asyncio.wrap_future(self._future).__await__()

    async def __aiter__(self) -> AsyncIterator[Told]:
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

    def _tell(self, event: Told) -> None:
        """Hears an event, in the engine's thread."""
        with self._lock:
            self.events.append(event)
            for loop, flag in self._listeners:
                with suppress(RuntimeError):  # the loop has been closed, and with it who listened
                    loop.call_soon_threadsafe(flag.set)

    def _cancel_job(self, future: Future[Outcome]) -> None:
        if future.cancelled() and self._job is not None:
            self._job.is_cancelled = True


class SearchHandle(Handle[SearchResult, SearchEvent]):
    """What `Engine.submit` returns: a search that runs."""

    def __init__(self, problem: Problem, deadline: float | None = None):
        super().__init__(problem)
        self.watch = Watch(self._tell)
        self._deadline = deadline

    def attach(self, job: Job) -> None:
        super().attach(job)
        if self._deadline is not None:
            job.deadline = time.monotonic() + self._deadline
            job.when_overdue = self._end_early

    def _finished(self, outcome: SearchResult) -> SearchResult:
        return replace(outcome, stopped_by="deadline" if self.watch.is_over else None)

    def _last_event(self, outcome: SearchResult | BaseException | None) -> SearchEvent:
        if not isinstance(outcome, SearchResult):
            return SearchEvent("done")
        tokens = sum(node.num_tokens for node in outcome.tree.nodes)
        return SearchEvent("done", answer=outcome.answer, generations=outcome.num_generations, tokens=tokens)

    def _end_early(self) -> None:
        self.watch.is_over = True
