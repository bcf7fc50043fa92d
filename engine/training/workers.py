"""Generates labelled answers in several processes on one machine, each with its own copy of the model.

A small model leaves cores idle, because between two forwards Python runs on one core. Rows do not depend on the number
of processes.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized

import torch

from engine.runtime import LLM
from engine.training.rollouts import LabelledAnswers, RolloutRecipe, generate
from engine.types import Problem

_LOCK_SECONDS = 60.0  # far longer than any process holds it

Workers = dict[Connection, multiprocessing.process.BaseProcess]


def generate_in_workers(
    num_workers: int,  # processes, this one included
    model: Mapping[str, object],  # arguments of LLM.load
    recipe: RolloutRecipe,
    todo: Sequence[int],  # indices into `problems`
    problems: Sequence[Problem],
    needs: Callable[[int], bool] = lambda index: True,  # whether an entry of `todo` is still to be done
    on_error: str = "raise",  # as of `generate`
) -> Iterator[tuple[int, LabelledAnswers]]:
    """As `generate`, but in this process and others, each with the model `LLM.load(**model)`.

    They end early once the next entry of `todo` is not needed any more. The processes divide this one's threads, and
    each takes the next question when its batch has room. An error in one ends all and is raised here; it is a
    RuntimeError if the process was killed. They are started with Python's `spawn`, so a calling script needs the usual
    `if __name__ == "__main__"`.
    """
    if not len(todo):
        return
    context = multiprocessing.get_context("spawn")
    num_workers, num_before = min(num_workers, len(todo)), torch.get_num_threads()
    num_threads = max(1, num_before // num_workers)
    position = context.Value("q", 0)
    workers: Workers = {}
    try:
        for _ in range(num_workers - 1):
            receiver, sender = context.Pipe(duplex=False)
            arguments = sender, position, num_threads, dict(model), recipe, list(todo), list(problems), on_error
            workers[receiver] = context.Process(target=_work, args=arguments, daemon=True)
            # A Ctrl-C reaches all processes of a terminal, but only this one handles it, and ends the others.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                workers[receiver].start()  # it inherits the mask
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sender.close()
        torch.set_num_threads(num_threads)
        running = list(workers)
        claimed = takewhile(needs, _claimed(todo, position))
        for labelled in generate(LLM.load(**model), recipe, claimed, problems, on_error):
            yield labelled
            yield from _needed(_received(workers, running, timeout=0), todo, position, needs)
        while running:
            yield from _needed(_received(workers, running, timeout=None), todo, position, needs)
    finally:
        torch.set_num_threads(num_before)
        for receiver, process in workers.items():
            receiver.close()
            process.kill()
            process.join()


def _needed(
    found: Iterator[tuple[int, LabelledAnswers]], todo: Sequence[int], position: Synchronized, needs: Callable
) -> Iterator[tuple[int, LabelledAnswers]]:
    """Yields what is found; has nothing more claimed once the next entry of `todo` is not needed."""
    for labelled in found:
        yield labelled
        with _locked(position):
            if position.value < len(todo) and not needs(todo[position.value]):
                position.value = len(todo)


def _received(
    workers: Workers, running: list[Connection], timeout: float | None
) -> Iterator[tuple[int, LabelledAnswers]]:
    """Yields results, after waiting `timeout` seconds (None: forever) for one; removes ended workers from `running`."""
    while ready := wait(running, timeout):
        for receiver in ready:
            try:
                message = receiver.recv()
            except EOFError:
                running.remove(receiver)
                _check_ended(workers[receiver])
                continue
            if isinstance(message, Exception):
                raise message
            yield message
        timeout = 0


def _check_ended(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    if process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        raise RuntimeError(f"a worker process was killed by {name}; SIGKILL is what a machine short of memory sends")
    if process.exitcode > 0:
        raise RuntimeError(f"a worker process ended with status {process.exitcode}")


def _work(
    sender: Connection,
    position: Synchronized,
    num_threads: int,
    model: Mapping[str, object],
    recipe: RolloutRecipe,
    todo: Sequence[int],
    problems: Sequence[Problem],
    on_error: str,
) -> None:
    """Runs in a worker: sends (question index, labelled answers) until none is left, or the error that ended it."""
    torch.set_num_threads(num_threads)
    try:
        try:
            for labelled in generate(LLM.load(**model), recipe, _claimed(todo, position), problems, on_error):
                sender.send(labelled)
        except Exception as error:
            sender.send(error)
    except BrokenPipeError:
        pass  # the parent no longer reads


def _claimed(todo: Sequence[int], position: Synchronized) -> Iterator[int]:
    """Yields those entries of `todo` that this process claims; `position` is the next one, shared by all."""
    while True:
        with _locked(position):
            at = position.value
            position.value += 1
        if at >= len(todo):
            return
        yield todo[at]


@contextmanager
def _locked(position: Synchronized) -> Iterator[None]:
    if not position.get_lock().acquire(timeout=_LOCK_SECONDS):
        raise RuntimeError("a worker process was killed while it took a question")
    try:
        yield
    finally:
        position.get_lock().release()
