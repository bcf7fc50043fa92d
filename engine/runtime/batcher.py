"""Drives searches: coroutines that wait for models, without a barrier between problems or requests."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from engine.interrupts import Uninterrupted
from engine.runtime.garbage import fewer_collections
from engine.runtime.llm import LLM
from engine.runtime.requests import Request, RequestRunner
from engine.runtime.runner import MAX_FORWARDS

_MIN_PREFILL_TOKENS = 512  # a verifier runs once this many tokens wait for it ...
_MAX_WAIT_TICKS = 4  # ... or once it has waited for this many forwards of the policy
_MAX_READY = 4096  # results that nobody has taken yet: a job with more starts no further search

Search = Coroutine[Request, None, Any]


@dataclass(eq=False)
class _Task:
    index: int
    search: Search
    waits_for: Request | None = None


@dataclass(eq=False)
class Job:
    """Searches that were asked for together. Its results, by index, are in `ready`; an error is one too."""

    searches: Iterator[Search]
    rows_each: int  # branches that each may generate at once
    runners: list[RequestRunner]  # the first generates; a further one that a search waits for is added
    deadline: float = math.inf  # of time.monotonic(); after it ...
    when_overdue: Callable[[], None] | None = None  # ... this is called once, ...
    is_overdue: bool = False  # ... and what runs ends with what it has: no further token is generated
    is_cancelled: bool = False  # from any thread: the next step closes it
    takes_all: bool = False  # what a search raises ends it alone, were it SystemExit
    when_stepped: Callable[[], None] | None = None  # called after every step, while it runs
    tasks: list[_Task] = field(default_factory=list)  # started, not ended
    ready: deque[tuple[int, Any]] = field(default_factory=deque)
    num_searches: int | None = None  # where it is known
    num_started: int = 0
    is_exhausted: bool = False  # every search has been started

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left to run."""
        return self.is_exhausted and not self.tasks

    @property
    def may_start(self) -> bool:
        return not self.is_exhausted and len(self.ready) < _MAX_READY

    def start(self) -> None:
        """Starts its next search, if there is one."""
        started = next(self.searches, None)
        if started is not None:
            self.tasks.append(_Task(self.num_started, started))
            self.num_started += 1
        self.is_exhausted = started is None or self.num_started == self.num_searches

    def close(self) -> None:
        """Gives up what runs, and starts nothing more. All are closed, even where one of them raises."""
        self.is_exhausted = True
        with ExitStack() as stack:
            for task in self.tasks:
                stack.callback(task.search.close)
            self.tasks = []


class Batcher:
    """Runs the searches of all jobs side by side, forward by forward.

    A search is started as soon as the batch of its job's first model has room: one of the job that has the fewest
    branches there, of equals the oldest, so that a long job does not hold up a short one. It is woken when the request
    that it awaits is done. A step is not to be interrupted, and one thread at a time may take one.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []  # in the order in which they came
        self._waited: dict[RequestRunner, int] = {}  # ticks of the others since each last ran with work pending
        self._num_forwards = MAX_FORWARDS  # of a tick in which one model alone has work

    @staticmethod
    def job(models: Sequence[LLM], searches: Iterable[Search], rows_each: int) -> Job:
        """A job for `jobs`, whose searches the next steps start; the first of its models generates, others may too."""
        return Job(iter(searches), rows_each, [llm.runner for llm in models])

    def remove(self, job: Job) -> None:
        """Closes the searches of a job that still run."""
        if job in self.jobs:
            self.jobs.remove(job)
        job.close()

    def run(self, models: Sequence[LLM], searches: Iterable[Search], rows_each: int) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) as searches end, for a caller that has this batcher to itself.

        An error ends its search alone and is yielded in the place of the result. Searches that still run when the
        iterator is closed are closed with it. Ctrl-C does the same, between two forwards, so the models can be used
        again afterwards. Python's garbage collector runs less often during the iteration.
        """
        job = self.job(models, searches, rows_each)
        self.jobs.append(job)
        try:
            with fewer_collections():
                while job in self.jobs:
                    self.step()
                    while job.ready:
                        yield job.ready.popleft()
        finally:
            self.remove(job)

    def step(self, max_seconds: float | None = None) -> None:
        """Starts and wakes what can be, then runs a forward of each model that has enough to do.

        Of a model that runs alone several forwards, as many as take about `max_seconds`. Jobs that are over leave
        `jobs`. Ctrl-C waits for the end of the step.
        """
        if max_seconds is None:
            self._num_forwards = MAX_FORWARDS
        self._start()
        with Uninterrupted(), self._guards():
            num_ended = self._advance()
            running = [job for job in self.jobs if job.tasks]
            if running and not num_ended:
                self._tick(max_seconds)
            for job in running:
                if job.when_stepped is not None:
                    job.when_stepped()
        self.jobs = [job for job in self.jobs if not job.is_over]
        if not self.jobs:
            self._waited.clear()

    def _guards(self) -> ExitStack:
        """Holds the models for a step, after the steps of other threads that are in one."""
        with ExitStack() as stack:
            for runner in self._runners():
                stack.enter_context(runner.in_use.after_others())
            return stack.pop_all()

    def _runners(self) -> list[RequestRunner]:
        """Those of all jobs."""
        return list(dict.fromkeys(itertools.chain.from_iterable(job.runners for job in self.jobs)))

    # -- searches ---------------------------------------------------------------------------

    def _start(self) -> None:
        """Starts searches while there is room; what is overdue needs none.

        Where the one whose turn it is finds no room, none after it is let past.
        """
        for job in self.jobs:
            if not job.is_overdue and job.deadline < math.inf and time.monotonic() > job.deadline:
                job.is_overdue = True
                if job.when_overdue is not None:
                    job.when_overdue()
            while job.is_overdue and job.may_start:
                job.start()
        starting = [job for job in self.jobs if not job.is_exhausted and job.may_start and not job.is_cancelled]
        if not starting:
            return
        num_rows: dict[RequestRunner, int] = {}
        for job in self.jobs:
            num_rows[job.runners[0]] = num_rows.get(job.runners[0], 0) + len(job.tasks) * job.rows_each
        while starting:
            job = min(starting, key=lambda each: len(each.tasks) * each.rows_each)
            sampler = job.runners[0]
            if self._has_room(job, num_rows[sampler]):
                job.start()
                num_rows[sampler] += job.rows_each
                starting = [each for each in starting if each is not job or each.may_start]
            else:
                starting = [each for each in starting if each.runners[0] is not sampler]

    @staticmethod
    def _has_room(job: Job, num_rows: int) -> bool:
        """Whether one more search of a job finds places beside `num_rows` others, and some blocks in every pool."""
        has_blocks = all(runner.num_free_blocks >= 4 * job.rows_each for runner in job.runners)
        return num_rows == 0 or (num_rows < job.runners[0].num_wanted_rows and has_blocks)

    def _advance(self) -> int:
        """Lets the searches go on that can; returns how many have ended."""
        num_ended = 0
        for job in list(self.jobs):
            if job.is_cancelled:
                job.close()
                continue
            if job.is_overdue:
                for task in job.tasks:
                    if task.waits_for is not None:
                        task.waits_for.cut()
            for task in [task for task in job.tasks if task.waits_for is None or task.waits_for.is_done]:
                num_ended += self._wake(job, task)
        return num_ended

    def _wake(self, job: Job, task: _Task) -> bool:
        """Lets a search go on. If it ends, its result is ready, and True is returned."""
        try:
            task.waits_for = task.search.send(None)
        except StopIteration as stop:
            job.ready.append((task.index, stop.value))
        except BaseException as error:
            if not (isinstance(error, Exception) or job.takes_all):
                raise
            job.ready.append((task.index, error))
        else:
            if task.waits_for.runner not in job.runners:  # a user's own verifier may use a model of its own
                job.runners.append(task.waits_for.runner)
            return False
        job.tasks.remove(task)
        return True

    # -- models -----------------------------------------------------------------------------

    def _tick(self, max_seconds: float | None) -> None:
        """One forward of each model that generates, and of each verifier that has enough to do.

        A model that generates runs several forwards, many if no other model has work. An endpoint is waited for only
        where no model here has. What a forward raises ends the searches that wait for it, and no others.
        """
        at_work = [runner for runner in self._runners() if runner.has_work]
        working = [runner for runner in at_work if not runner.is_remote]
        for runner in at_work:
            if runner.is_remote:
                self._forward(runner, 1 if working else MAX_FORWARDS)
        firsts = {job.runners[0] for job in self.jobs}
        samplers = [runner for runner in working if runner in firsts or runner.samples]
        judges = [runner for runner in working if runner not in samplers]
        num_most = MAX_FORWARDS if len(working) == 1 else self._num_until_due(judges)
        num_run = max([self._forwards(runner, num_most, max_seconds) for runner in samplers], default=1)
        for runner in judges:
            if runner.is_waiting and samplers:
                continue  # on a GPU its last forward runs beside the others'
            self._waited[runner] = self._waited.get(runner, 0) + num_run
            if self._is_due(runner) or runner.is_in_flight or not samplers:
                self._forward(runner, 1)
                self._waited[runner] = 0

    def _num_until_due(self, judges: Sequence[RequestRunner]) -> int:
        """Forwards that the others may run at once: as many as would be run one by one before a verifier is due."""
        if any(self._is_due(runner) or runner.is_in_flight for runner in judges):
            return 1
        return min([_MAX_WAIT_TICKS - self._waited.get(runner, 0) for runner in judges], default=_MAX_WAIT_TICKS)

    def _is_due(self, runner: RequestRunner) -> bool:
        """Whether a verifier has enough to do, or has waited for long enough."""
        has_waited = self._waited.get(runner, 0) >= _MAX_WAIT_TICKS
        return has_waited or runner.num_given_tokens >= _MIN_PREFILL_TOKENS

    def _forwards(self, runner: RequestRunner, num_most: int, max_seconds: float | None) -> int:
        """Runs forwards of a model that generates, no more than about fit the time by what the last ones took.

        Returns how many.
        """
        num_most = num_most if max_seconds is None else min(num_most, self._num_forwards)
        before, begun = runner.num_ticks, time.perf_counter()
        self._forward(runner, num_most)
        num_run = max(1, runner.num_ticks - before)
        if max_seconds is not None:
            seconds_each = (time.perf_counter() - begun) / num_run
            self._num_forwards = max(1, min(MAX_FORWARDS, int(max_seconds / max(seconds_each, 1e-9))))
        return num_run

    def _forward(self, runner: RequestRunner, max_forwards: int) -> None:
        """Raises what the forward raised, unless a search that awaits it is given the error."""
        try:
            runner.tick(max_forwards)
        except Exception as error:
            waiting = (task.waits_for for job in self.jobs for task in job.tasks)
            if not any(request is not None and request.error is error for request in waiting):
                raise
