"""Who steps the searches of an engine: one thread at a time, for all who wait for results."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import torch

from engine.errors import UserError
from engine.interrupts import Uninterrupted
from engine.runtime.batcher import Batcher, Job, Search
from engine.runtime.garbage import fewer_collections
from engine.runtime.llm import LLM

_STEP_SECONDS = 0.03  # of forwards, beside which other threads have work: what is cancelled is not to wait for long
_PATIENCE = 0.5  # seconds until a thread that sleeps looks by itself whether it may drive
_IDLE = 5.0  # seconds after which a thread without a job ends

Deliver = Callable[[Any], None]
_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Python takes down what a thread within a forward still uses, which would abort the program."""
    for driver in list(_drivers):
        driver.end()


class Driver:
    """Lets any number of threads wait for searches that share one batcher.

    A thread that waits drives: it steps the searches of all, until a result of its own is there. While one does, the
    others sleep, and are woken for their results, or to drive in its place. So a search runs in the thread that asks
    for it, as if it were alone, until a second one comes; and a thread of the driver's own drives as long as there are
    jobs that were given to `start`, whose results nobody waits for.
    """

    def __init__(self) -> None:
        self._batcher = Batcher()
        # Held for a few instructions at a time, within which Ctrl-C waits.
        self._lock = threading.Lock()
        self._new: list[Job] = []
        self._driving: int | None = None  # the thread that does
        self._sleeping: list[tuple[Job | None, SimpleQueue]] = []  # what each waits for, and what wakes it
        self._live: dict[Job, Deliver] = {}
        self._thread: threading.Thread | None = None
        self._inbox: SimpleQueue[None] = SimpleQueue()  # wakes the thread where it is idle
        self._is_over = False  # the program is ending
        self._process = os.getpid()
        _drivers.add(self)

    def results(self, models: Sequence[LLM], searches: Iterable[Search], rows_each: int) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) as searches end, an error in the place of a result.

        Closed before its end, it gives up what still runs; so does Ctrl-C, between two forwards. Raises UserError in
        what a search of this engine calls, a verifier perhaps: that may not wait for another one.
        """
        self._check_process()
        job = self.job(models, searches, rows_each)
        with Uninterrupted(), self._lock:
            self._new.append(job)
        try:
            with fewer_collections():
                while not job.is_over or job.ready:
                    if not job.ready:
                        self._wait(job)
                        continue
                    if self._sleeping:
                        self._wake(is_leaving=True)
                    yield job.ready.popleft()
        finally:
            self._close(job)

    def job(self, models: Sequence[LLM], searches: Iterable[Search], rows_each: int) -> Job:
        """A job that nothing runs yet."""
        return self._batcher.job(models, searches, rows_each)

    def start(self, job: Job, deliver: Deliver) -> None:
        """Runs a job of one search in a thread of the driver's own, which calls `deliver` with its result or error.

        Where it is cancelled (`is_cancelled`), `deliver` is called with None.
        """
        self._check_process()
        job.takes_all, job.num_searches = True, 1
        with Uninterrupted(), self._lock:
            self._new.append(job)
            self._live[job] = deliver
            if self._thread is None or not self._thread.is_alive():  # a forked child has none
                device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
                settings = torch.get_num_threads(), device  # those of a thread are its own
                self._thread = threading.Thread(target=self._run_live, args=settings, name="ttc engine", daemon=True)
                self._thread.start()
        self._inbox.put(None)

    def cancel_all(self) -> None:
        """Cancels all that `start` runs."""
        for job in list(self._live):
            job.is_cancelled = True

    def end(self, seconds: float = 10.0) -> None:
        """Cancels all and ends the thread, which may take `seconds`: a verifier that hangs is not waited for longer."""
        self._is_over = True
        self.cancel_all()
        self._inbox.put(None)
        thread = self._thread
        if thread is not None and self._process == os.getpid():
            thread.join(seconds)

    def _check_process(self) -> None:
        """Takes over in a forked child. Raises UserError where the fork came in the middle of a step."""
        if self._process == os.getpid():
            return
        if self._driving is not None or self._live or self._batcher.jobs:
            raise UserError("the engine was at work when this process was forked: load another one here")
        self._process, self._lock, self._thread, self._sleeping = os.getpid(), threading.Lock(), None, []

    def _close(self, job: Job) -> None:
        """Gives up what still runs of a job, or has the thread that drives do it."""
        job.is_cancelled = True
        while not job.is_over and self._driving != threading.get_ident():
            self._wait(job)

    # -- driving ----------------------------------------------------------------------------

    def _wait(self, job: Job | None) -> None:
        """Takes a step for all; or, while another thread drives, sleeps until that is worth a look.

        `job` is what the caller waits for, None for those of `start`. Ctrl-C waits for the end of a step.
        """
        woken: SimpleQueue | None = None
        with Uninterrupted():
            with self._lock:
                if self._driving == threading.get_ident():
                    raise UserError(
                        "the engine is at work, and what it called (a verifier, perhaps) may not call it again"
                    )
                if self._driving is None:
                    self._driving = threading.get_ident()
                else:
                    woken = SimpleQueue()
                    self._sleeping.append((job, woken))
            if woken is None:
                try:
                    self._step()
                finally:
                    with self._lock:
                        self._driving = None
                    if self._sleeping:
                        self._wake(is_leaving=job is not None and (job.is_over or bool(job.ready)))
                return
        try:
            with suppress(Empty):
                woken.get(timeout=_PATIENCE)
        finally:
            with Uninterrupted(), self._lock, suppress(ValueError):
                self._sleeping.remove((job, woken))

    def _step(self) -> None:
        """One step of all jobs; delivers what has ended of those that were started."""
        with self._lock:
            new, self._new = self._new, []
        self._batcher.jobs += new
        try:
            self._batcher.step(_STEP_SECONDS if self._live or self._sleeping else None)
        finally:
            for job in [job for job in list(self._live) if job.is_over]:
                self._live.pop(job)(job.ready.popleft()[1] if job.ready else None)

    def _wake(self, *, is_leaving: bool) -> None:
        """Wakes the threads whose jobs have results; or one that is to drive, where this one leaves."""
        with Uninterrupted(), self._lock:
            found = [each for each in self._sleeping if each[0] is not None and (each[0].ready or each[0].is_over)]
            if not found and is_leaving and self._driving is None:
                found = self._sleeping[:1]
            for each in found:
                self._sleeping.remove(each)
                each[1].put(None)

    def _run_live(self, num_threads: int, device: int | None) -> None:
        """Drives while there are started jobs, and for a while after the last."""
        torch.set_num_threads(num_threads)
        if device is not None:
            torch.cuda.set_device(device)
        while True:
            with fewer_collections():
                while self._live:
                    try:
                        self._wait(None)
                    except BaseException as error:  # a fault of this program: whoever waits is to hear of it
                        self._fail(error)
            if self._is_over:
                return
            with suppress(Empty):
                self._inbox.get(timeout=_IDLE)
                continue
            with self._lock:
                if not self._live:
                    self._thread = None
                    return

    def _fail(self, error: BaseException) -> None:
        """Ends all started jobs with an error."""
        with self._lock:
            failed, self._live = self._live, {}
        for job, deliver in failed.items():
            job.is_cancelled = True
            deliver(error)
