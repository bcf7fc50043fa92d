"""Worker processes that grade answers, each killed when it exceeds a limit of CPU time.

Processes rather than threads, because sympy can hang in C code or use up all memory, and neither can be stopped from
inside. They start when first needed, as separate programs (a fork would copy torch's threads) in separate sessions
(only the parent handles Ctrl-C), and end when their stdin closes, however the parent ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError

_SCRIPT = Path(__file__).with_name("grading_worker.py")
_START_SECONDS = 120.0  # for sympy's import on a busy machine
# Until a worker is killed whose own timer, of CPU time, has not ended it: it may share its processor with many.
_WALL_SHARE = 10.0  # seconds of the clock per second of the limit
_GRACE_SECONDS = 1.0
_MAX_STARTS = 3  # in a row that fail
_NEEDS = {
    "math": "grading needs math-verify",
    "gym": "a task gym:NAME needs reasoning-gym (pip install 'ttc-engine[gym]')",
}


@dataclass
class Allowance:
    """The seconds that comparisons may still take, over all of those that share it."""

    seconds: float

    @property
    def is_spent(self) -> bool:
        return self.seconds <= 0


class WorkerPool:
    """Up to `num_workers` processes of one kind of `grading_worker`: "math" or "gym". Not thread-safe."""

    def __init__(self, num_workers: int, max_bytes: int, kind: str = "math") -> None:
        self.num_workers = num_workers
        self.max_bytes = max_bytes
        self.kind = kind
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, self._owner)

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the live workers."""
        return [worker.process.pid for worker in self._workers]

    def compare(
        self, pairs: Sequence[tuple[str, str]], seconds: float, allowances: Sequence[Allowance]
    ) -> list[bool | None]:
        """Whether each (gold, answer) is equal; None where the workers cannot tell.

        As `ask`, of workers of the kind "math".
        """
        return [{"1": True, "0": False}.get(reply) for reply in self.ask(pairs, seconds, allowances)]

    def ask(
        self, requests: Sequence[Sequence[object]], seconds: float, allowances: Sequence[Allowance]
    ) -> list[str | None]:
        """The reply to each request; None for one that took over `seconds` of CPU time or ended its worker.

        Requests are JSON values. `allowances` has one for each, from which its time is taken; once it is spent, its
        requests are None too.
        Raises UserError if what the workers need is not installed, RuntimeError if no worker can be started.
        """
        if os.getpid() != self._owner:  # a fork: the workers are the parent's
            self._workers.clear()
            self._owner = os.getpid()
            self._finalizer.detach()
            self._finalizer = weakref.finalize(self, _kill_all, self._workers, self._owner)
        replies: list[str | None] = [None] * len(requests)
        try:
            self._run(requests, seconds, allowances, replies)
        except BaseException:  # pending replies would be taken for those to later requests
            self.close()
            raise
        return replies

    def close(self) -> None:
        """Ends all workers; the next `compare` starts new ones."""
        _kill_all(self._workers, self._owner)

    def _run(
        self,
        requests: Sequence[Sequence[object]],
        seconds: float,
        allowances: Sequence[Allowance],
        replies: list[str | None],
    ) -> None:
        todo = deque(range(len(requests)))
        num_asked = 0
        num_failed_starts = 0
        while True:
            while todo and allowances[todo[0]].is_spent:
                todo.popleft()
            if not todo and not num_asked:
                return
            while len(self._workers) < min(self.num_workers, num_asked + len(todo)):
                self._workers.append(_Worker(self.kind, self.max_bytes))
            for worker in self._workers:
                if worker.is_idle and todo:
                    worker.ask(todo.popleft(), requests, seconds)
                    num_asked += 1
            for worker in self._wait():
                reply = worker.read()
                if reply is None:
                    continue
                if reply.startswith("missing"):
                    raise UserError(f"{_NEEDS[self.kind]}, and cannot import it ({reply[8:]})")
                if reply == "ready":
                    num_failed_starts = 0
                    continue
                if reply == "dead":
                    self._drop(worker)
                    num_failed_starts += worker.task is None
                    if num_failed_starts >= _MAX_STARTS:
                        raise RuntimeError("the grading processes end before they are ready")
                if worker.task is not None:
                    replies[worker.task] = None if reply in ("dead", "e") else reply
                    allowances[worker.task].seconds -= time.monotonic() - worker.asked_at
                    worker.task = None
                    num_asked -= 1

    def _wait(self) -> list[_Worker]:
        """Waits for workers with output or over their time limit, kills the latter, and returns both."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if not worker.is_idle:
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            deadlines = [worker.deadline for worker in self._workers if not worker.is_idle]
            ready = selector.select(max(0.0, min(deadlines) - time.monotonic()))
        now = time.monotonic()
        late = [worker for worker in self._workers if not worker.is_idle and worker.deadline <= now]
        for worker in late:
            worker.process.kill()
        return list(dict.fromkeys([key.data for key, _ in ready] + late))

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.close()


class _Worker:
    """One process: it starts, reports that it is ready, then answers one request at a time."""

    def __init__(self, kind: str, max_bytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), kind, str(max_bytes)],  # -P: no imports from the script's folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )
        self.is_ready = False
        self.task: int | None = None  # index of the request that it answers
        self.asked_at = time.monotonic()
        self.deadline = self.asked_at + _START_SECONDS
        self._received = b""

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.task is None

    def ask(self, task: int, requests: Sequence[Sequence[object]], seconds: float) -> None:
        self.task = task
        self.asked_at = time.monotonic()
        self.deadline = self.asked_at + _WALL_SHARE * seconds + _GRACE_SECONDS
        with contextlib.suppress(BrokenPipeError):  # it has died: the next read finds the end of file
            self.process.stdin.write(json.dumps([*requests[task], seconds]).encode() + b"\n")

    def read(self) -> str | None:
        """The next line of output, "dead" at the end of file, or None while the line is incomplete."""
        received = os.read(self.process.stdout.fileno(), 4096)
        if not received:
            return "dead"
        self._received += received
        if not self._received.endswith(b"\n"):
            return None
        line, self._received = self._received.decode(errors="replace").strip(), b""
        self.is_ready = self.is_ready or line == "ready"
        return line

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _kill_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().close()
