"""An endpoint at work: its requests are in flight in a thread of their own, and end in the batcher's ticks."""

from __future__ import annotations

import math
import weakref
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue

from engine.remote.client import Client
from engine.remote.loop import LoopThread
from engine.remote.requests import RemoteJob, RemoteRequest
from engine.runtime.one_thread import OneThread

_PATIENCE = 0.05  # seconds that a tick waits where nothing else has work; what is cancelled meanwhile waits as long


class RemoteRunner:
    """Implements `engine.runtime.requests.RequestRunner`. Its requests change in the thread that ticks alone."""

    is_remote = samples = True
    is_in_flight = is_waiting = False
    num_given_tokens = 0
    num_free_blocks = math.inf

    def __init__(self, client: Client, thread: LoopThread, max_in_flight: int):
        self.in_use = OneThread("an endpoint")
        self.num_ticks = 0
        self.num_wanted_rows = max_in_flight + max_in_flight // 2
        self._client, self._thread = client, thread
        self._jobs: dict[RemoteJob, Future] = {}
        self._ended: SimpleQueue[tuple[RemoteJob, Exception | None]] = SimpleQueue()
        weakref.finalize(self, thread.close, client.close)

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    def submit(self, job: RemoteJob) -> None:
        """Sends a request as soon as there is a place among those in flight."""
        job.branch.job = job
        self._jobs[job] = self._thread.run(_work(self._client, job, self._ended))

    def tick(self, max_forwards: int = 1) -> None:
        """Ends what has come; with more than one forward it waits a moment for something to come."""
        with self.in_use, suppress(Empty):
            self.num_ticks += 1
            self._end(*self._ended.get(block=max_forwards > 1, timeout=_PATIENCE))
            while True:
                self._end(*self._ended.get_nowait())

    def cancel(self, job: RemoteJob) -> None:
        """Closes a job's connection; what has been sampled is billed."""
        future = self._jobs.pop(job, None)
        if future is not None:
            future.cancel()
            job.branch.job = None
            job.charge()

    def cut(self, request: RemoteRequest) -> None:
        """Ends a request with the texts that have come until now."""
        for job in self._of(request):
            self.cancel(job)
            request.results[job.index] = job.sampled
            request.num_left -= 1

    def _of(self, request: RemoteRequest) -> list[RemoteJob]:
        return [job for job in self._jobs if job.request is request]

    def _end(self, job: RemoteJob, error: Exception | None) -> None:
        """Takes what came of a job, unless it has been cancelled meanwhile."""
        if self._jobs.pop(job, None) is None:
            return
        job.branch.job = None
        job.charge()
        job.request.results[job.index] = job.sampled
        job.request.num_left -= 1
        if error is not None:
            job.request.error = error
            for other in self._of(job.request):
                self.cancel(other)


async def _work(client: Client, job: RemoteJob, ended: SimpleQueue) -> None:
    """A job, in the loop's thread. One that is cancelled reports nothing."""
    error = None
    try:
        await client.sample(job.path, job.body, job.sampled, job.request.stops_at_box)
    except Exception as raised:
        error = raised
    ended.put((job, error))
