"""Admits requests to the engine, and keeps account of those that run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from engine.engine import Engine
from engine.handle import Handle
from engine.serve.errors import as_api_error, busy, unavailable
from engine.serve.metrics import Metrics

Made = TypeVar("Made")
_MEMORY = 0.1  # weight of the latest request in the mean of their seconds


class Desk:
    """One per server; all but what `in_thread` runs belongs to the event loop's thread."""

    def __init__(self, engine: Engine, max_queue: int):
        self.engine, self.max_queue = engine, max_queue
        self.handles: set[Handle] = set()
        self.num_requests = 0  # that have not been answered whole
        self.stops_at: float | None = None  # of time.monotonic(), once the server is being stopped
        self._is_closed = False
        self._seconds = 1.0  # that a request takes
        # One thread: what renders a chat template serves one caller, and the event loop waits for none.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ttc prompts")
        self.metrics = Metrics(
            {
                "num_requests_running": ("Requests that the engine works on.", lambda: self.num_running),
                "num_requests_waiting": ("Requests that wait for a place.", lambda: self.num_waiting),
                "kv_cache_usage_perc": (
                    "Share of the policy's KV blocks in use.",
                    lambda: 1 - engine.policy.free_share,
                ),
            }
        )

    @property
    def num_waiting(self) -> int:
        return sum(handle.is_waiting for handle in list(self.handles))

    @property
    def num_running(self) -> int:
        return len(self.handles) - self.num_waiting

    @property
    def is_draining(self) -> bool:
        """Whether no new request is taken any more."""
        return self.stops_at is not None

    def drain(self, seconds: float) -> None:
        """Takes no new requests; those that run have so long."""
        self.stops_at = time.monotonic() + seconds

    @property
    def is_drained(self) -> bool:
        """Whether nothing runs any more, or nothing may."""
        return self.is_draining and (self.num_requests == 0 or time.monotonic() >= self.stops_at)

    def close(self) -> None:
        """Cancels what still runs, and what starts yet."""
        self._is_closed = True
        for handle in list(self.handles):
            handle.cancel()

    def check_open(self) -> None:
        """Raises APIError for a server that is being stopped, and where too many wait already."""
        if self.is_draining:
            raise unavailable()
        if (num_waiting := self.num_waiting) >= self.max_queue:
            raise busy(num_waiting, self._seconds * num_waiting / max(1, self.num_running))

    async def in_thread(self, make: Callable[[], Made], drop: Callable[[Made], object] | None = None) -> Made:
        """What a call in the thread for prompts returns; where nobody waits any more, `drop` is given it."""
        made = self._thread.submit(make)
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        made.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        try:
            await done.wait()
        except asyncio.CancelledError:
            if drop is not None:
                made.add_done_callback(lambda future: _drop(future, drop))
            raise
        return made.result()

    @asynccontextmanager
    async def running(self, start: Callable[[], Handle]) -> AsyncIterator[Handle]:
        """A handle that is cancelled at the end of the block, whatever ends it."""
        begun = time.monotonic()
        self.num_requests += 1
        try:
            handle = await self.in_thread(start, lambda handle: handle.cancel())
            self.handles.add(handle)
            if self._is_closed:
                handle.cancel()
            try:
                yield handle
            finally:
                handle.cancel()
                self.handles.discard(handle)
                self.metrics.bill(handle.ledger)
        except asyncio.CancelledError:
            self.metrics.failure.labels("disconnected").inc()
            raise
        except Exception as error:
            self.metrics.failure.labels(str(as_api_error(error).status)).inc()
            raise
        finally:
            self.num_requests -= 1
        seconds = time.monotonic() - begun
        self._seconds += _MEMORY * (seconds - self._seconds)
        self.metrics.latency.observe(seconds)


async def outcome(handle: Handle[Made, object]) -> Made:
    """What comes of a handle. Raises APIError where it was cancelled, which a server does that is being stopped."""
    task = asyncio.ensure_future(_awaited(handle))
    await asyncio.wait({task})
    if task.cancelled():
        raise unavailable()
    return task.result()


async def _awaited(handle: Handle[Made, object]) -> Made:
    return await handle


def _drop(future: Future, drop: Callable[[Made], object]) -> None:
    if future.exception() is None:
        drop(future.result())
