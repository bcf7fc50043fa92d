"""Searches that run while their caller goes on: results, events, cancellation, deadlines, threads."""

import asyncio
import gc
import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from engine.engine import Engine
from engine.errors import UserError
from engine.runtime.batcher import Job
from engine.scheduler import ComputeOptimal, calibration_file
from engine.search import BeamSearch, BestOfN
from engine.types import Problem, SearchResult

from .builders import PROBLEMS, assert_idle, fingerprint, load_engine, runners

OPTIONS = {"max_tokens": 14, "seed": 2}
STRATEGY = BeamSearch(width=2)
MAX_SECONDS = 120.0


@pytest.fixture
def engine(folders) -> Engine:
    return load_engine(folders)


def wanted(engine: Engine, **options) -> list[str]:
    return [fingerprint(each) for each in engine.search(PROBLEMS, STRATEGY, 4, **OPTIONS, **options)]


def submit_all(engine: Engine, **options) -> list:
    return [engine.submit(problem, STRATEGY, budget=4, **OPTIONS, **options) for problem in PROBLEMS]


def wait_until(is_so) -> None:
    end = time.monotonic() + MAX_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.001)


def test_results_are_those_of_a_search(engine):
    want = wanted(engine)
    handles = submit_all(engine)
    assert [fingerprint(handle.result(MAX_SECONDS)) for handle in handles] == want
    assert all(handle.is_done and handle.result().stopped_by is None for handle in handles)
    assert [handle.ledger for handle in handles] == [handle.result().ledger for handle in handles]
    assert_idle(*runners(engine))


def test_a_handle_is_awaited_and_tells_what_happens(engine):
    async def run():
        handle = engine.submit(PROBLEMS[0], STRATEGY, budget=4, **OPTIONS)
        events = [event async for event in handle]
        assert [event async for event in handle] == events, "a second reader hears all from the first one on"
        return events, await handle

    events, result = asyncio.run(run())
    nodes = {node.address: node for node in result.tree.nodes[1:]}
    steps = [event for event in events if event.kind == "step"]
    assert {event.address: (event.text, event.score) for event in steps} == {
        address: (node.step_text, node.score) for address, node in nodes.items()
    }
    for kind, status in (("kept", "kept"), ("pruned", "pruned")):
        told = {event.address for event in events if event.kind == kind}
        assert told == {address for address, node in nodes.items() if node.status == status}
    ended = [(event.address, event.text, event.answer) for event in events if event.kind == "answer"]
    assert ended == [(each.address, each.text, each.answer) for each in result.candidates]
    assert [event.kind for event in events[-2:]] == ["spent", "done"]
    assert events[-2].generations == events[-1].generations == result.num_generations
    assert events[-1].tokens == sum(node.num_tokens for node in nodes.values())
    assert events[-1].answer == result.answer


class Door:
    """A verifier that waits until it is opened."""

    def __init__(self):
        self.is_reached, self.is_open = threading.Event(), threading.Event()

    def __call__(self, _prompt: str, _steps: list[str]) -> float:
        self.is_reached.set()
        assert self.is_open.wait(MAX_SECONDS)
        return 0.5


def test_cancelled_searches_end_and_the_others_are_as_they_were(engine):
    want, door = wanted(engine), Door()
    held = engine.submit(PROBLEMS[0], STRATEGY, budget=4, verifier=door, **OPTIONS)
    handles = submit_all(engine)
    assert door.is_reached.wait(MAX_SECONDS)
    assert held.cancel()
    assert handles[1].cancel()
    assert held.is_done
    door.is_open.set()
    for handle in (held, handles[1]):
        with pytest.raises(CancelledError):
            handle.result(MAX_SECONDS)
    others = [index for index in range(len(PROBLEMS)) if index != 1]
    assert [fingerprint(handles[index].result(MAX_SECONDS)) for index in others] == [want[index] for index in others]
    wait_until(lambda: held.events and held.events[-1].kind == "done")
    assert not handles[0].cancel(), "it has ended"
    assert_idle(*runners(engine))
    assert wanted(engine) == want


def test_a_search_that_is_cancelled_before_it_starts_leaves_nothing(engine, recwarn):
    door = Door()
    held = engine.submit(PROBLEMS[0], STRATEGY, budget=4, verifier=door, **OPTIONS)
    assert door.is_reached.wait(MAX_SECONDS)
    waiting = [engine.submit(PROBLEMS[1], STRATEGY, budget=4, **OPTIONS)]
    assert waiting[0].is_waiting
    assert not held.is_waiting
    waiting[0].cancel()
    door.is_open.set()
    held.result(MAX_SECONDS)
    wait_until(lambda: waiting[0].events)
    waiting.clear()
    gc.collect()
    assert not recwarn.list, "no coroutine that was never awaited"
    assert_idle(*runners(engine))


def test_an_awaiting_task_that_is_cancelled_cancels_the_search(engine):
    door = Door()

    async def run():
        handle = engine.submit(PROBLEMS[0], STRATEGY, budget=4, verifier=door, **OPTIONS)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.01)
        door.is_open.set()
        return handle

    handle = asyncio.run(run())
    assert handle.is_done
    wait_until(lambda: handle.events and handle.events[-1].kind == "done")
    assert_idle(*runners(engine))


LONG = Problem("long", "?5?2?=c;d3?1?4?;?0?3?1?=e;b2?4?5?0?")


@pytest.fixture(scope="module")
def home() -> Engine:
    """The tiny models' answers end too soon."""
    return Engine.load("home")


@pytest.mark.parametrize("strategy", [BestOfN(), STRATEGY])
def test_at_its_deadline_a_search_gives_the_best_so_far(home, strategy):
    """Best-of-N is cut in the middle of its answers, a beam between its rounds or in a step."""
    options = {"seed": 2, "budget": 64}
    whole = home.submit(LONG, strategy, deadline=MAX_SECONDS, **options).result(MAX_SECONDS)
    assert whole.stopped_by is None
    num_tokens = sum(node.num_tokens for node in whole.tree.nodes)
    assert num_tokens > 2000
    at_once = home.submit(LONG, strategy, deadline=0, **options).result(MAX_SECONDS)
    assert (at_once.stopped_by, at_once.answer, at_once.candidates) == ("deadline", None, ())
    cut = home.submit(LONG, strategy, deadline=0.01, **options).result(MAX_SECONDS)
    assert cut.stopped_by == "deadline"
    assert 0 < sum(node.num_tokens for node in cut.tree.nodes) < num_tokens
    texts = {node.address: node.step_text for node in whole.tree.nodes}
    for node in cut.tree.nodes:
        assert texts[node.address].startswith(node.step_text), "what there is, is as it would have been"
    assert_idle(*runners(home))
    assert fingerprint(home.search([LONG], strategy, **options)[0]) == fingerprint(whole)


def test_the_scheduler_at_its_deadline_has_billed_what_it_estimated(home):
    strategy = ComputeOptimal(calibration_file("home"))
    cut = home.submit(LONG, strategy, budget=16, deadline=0)
    result = cut.result(MAX_SECONDS)
    assert (result.stopped_by, result.strategy, result.candidates) == ("deadline", "compute-optimal", ())
    assert cut.ledger == result.ledger
    assert cut.ledger.tokens["estimation"] > 0
    assert_idle(*runners(home))


def test_a_job_whose_results_nobody_takes_starts_no_more():
    job = Job(iter(()), 1, [])
    assert job.may_start
    job.ready.extend((index, None) for index in range(4096))
    assert not job.may_start
    job.ready.popleft()
    assert job.may_start


def test_a_search_over_its_deadline_has_its_last_round_scored(home):
    door = Door()
    slow = home.submit(LONG, STRATEGY, budget=4, deadline=0.1, verifier=door, seed=2)
    assert door.is_reached.wait(MAX_SECONDS)
    time.sleep(0.15)
    door.is_open.set()
    result = slow.result(MAX_SECONDS)
    assert result.stopped_by == "deadline"
    judged = [node.score for node in result.tree.nodes[1:] if node.finish != "length"]
    assert judged
    assert set(judged) == {0.5}
    assert_idle(*runners(home))


def test_errors_are_raised_where_the_handle_is_read(engine):
    want = wanted(engine)
    with pytest.raises(UserError, match="deadline must be at least 0 seconds, got -1"):
        engine.submit(PROBLEMS[0], STRATEGY, deadline=-1)
    with pytest.raises(UserError, match="deadline must be at least 0 seconds, got nan"):
        engine.submit(PROBLEMS[0], STRATEGY, deadline=math.nan)
    with pytest.raises(UserError, match="strategy must be a strategy"):
        engine.submit(PROBLEMS[0], "beam")
    with pytest.raises(UserError, match="config must be a SearchConfig, got 3"):
        engine.submit(PROBLEMS[0], STRATEGY, 3)
    long = engine.submit("1" * 2000, STRATEGY, budget=4, **OPTIONS)
    handles = submit_all(engine)
    with pytest.raises(UserError, match="2001 tokens"):
        long.result(MAX_SECONDS)
    assert [fingerprint(handle.result(MAX_SECONDS)) for handle in handles] == want

    def judge(_prompt: str, _steps: list[str]) -> float:
        return engine.submit(PROBLEMS[1], BestOfN(), budget=2, **OPTIONS).result(0.05).candidates[0].agg_score

    with pytest.raises(TimeoutError):  # it would wait for itself
        engine.submit(PROBLEMS[0], STRATEGY, budget=4, verifier=judge, **OPTIONS).result(MAX_SECONDS)
    wait_until(lambda: not engine._driver._live)
    assert_idle(*runners(engine))


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_what_a_verifier_raises_ends_its_own_search_alone(engine, kind):
    want, door = wanted(engine), Door()

    def judge(prompt: str, steps: list[str]) -> float:
        door(prompt, steps)
        raise kind("no verdict")

    failing = engine.submit(PROBLEMS[0], STRATEGY, budget=4, verifier=judge, **OPTIONS)
    handles = submit_all(engine)
    door.is_open.set()
    with pytest.raises(kind, match="no verdict"):
        failing.result(MAX_SECONDS)
    assert [fingerprint(handle.result(MAX_SECONDS)) for handle in handles] == want
    assert_idle(*runners(engine))


def test_a_program_may_end_while_searches_run():
    code = """
from engine import BestOfN, Engine
engine = Engine.load("home")
handles = [engine.submit("?5?2?=c;d3?", BestOfN(), budget=256, seed=seed) for seed in range(40)]
next(iter(handles)).result()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=MAX_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


def test_close_cancels_all(engine):
    door = Door()
    handles = [engine.submit(each, STRATEGY, budget=4, verifier=door, **OPTIONS) for each in PROBLEMS]
    assert door.is_reached.wait(MAX_SECONDS)
    engine.close()
    door.is_open.set()
    wait_until(lambda: all(handle.is_done for handle in handles))
    assert_idle(*runners(engine))


def test_threads_search_beside_one_another(engine):
    want, found = wanted(engine), {}

    def search(number: int) -> None:
        found[number] = wanted(engine)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    handles = submit_all(engine)
    for thread in threads:
        thread.join(MAX_SECONDS)
        assert not thread.is_alive()
    assert list(found.values()) == [want] * 4
    assert [fingerprint(handle.result(MAX_SECONDS)) for handle in handles] == want
    assert_idle(*runners(engine))


def test_a_search_that_is_left_behind_holds_up_no_other(engine):
    """Its iterator is suspended, then closed, while another thread drives."""
    want = wanted(engine)
    results = engine.search_iter(PROBLEMS, STRATEGY, 4, **OPTIONS)
    next(results)
    handles = submit_all(engine)
    assert [fingerprint(handle.result(MAX_SECONDS)) for handle in handles] == want
    results.close()
    assert_idle(*runners(engine))


def test_a_short_request_does_not_wait_for_a_long_one(engine):
    """One problem is searched while a job of many is at work, not after it."""
    many = [Problem(str(number), PROBLEMS[number % len(PROBLEMS)].prompt) for number in range(200)]
    results = engine.search_iter(many, STRATEGY, 4, **OPTIONS)
    first = next(results)
    handle = engine.submit(PROBLEMS[0], STRATEGY, budget=4, **OPTIONS)
    num_before = sum(1 for _ in zip(results, iter(lambda: handle.is_done, True), strict=False))
    assert isinstance(handle.result(MAX_SECONDS), SearchResult)
    assert num_before < 150
    assert first[1].problem.id == str(first[0])
    results.close()
    assert_idle(*runners(engine))


def test_a_forked_child_submits_too(engine):
    want = wanted(engine)
    assert [fingerprint(each.result(MAX_SECONDS)) for each in submit_all(engine)] == want
    child = os.fork()
    if child == 0:
        try:
            found = [fingerprint(each.result(MAX_SECONDS)) for each in submit_all(engine)]
            os._exit(0 if found == want else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_that_is_forked_amid_a_step_says_so(engine):
    """What the other thread was at is half done there."""
    want, door = wanted(engine), Door()
    held = engine.submit(PROBLEMS[0], STRATEGY, budget=4, verifier=door, **OPTIONS)
    assert door.is_reached.wait(MAX_SECONDS)
    child = os.fork()
    if child == 0:
        try:
            engine.search(PROBLEMS, STRATEGY, 4, **OPTIONS)
        except UserError as error:
            os._exit(0 if "the engine was at work when this process was forked" in str(error) else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    door.is_open.set()
    held.result(MAX_SECONDS)
    assert wanted(engine) == want
