"""A search that is given up anywhere leaves nothing behind."""

import signal
import sys

import pytest
import torch

from engine.interrupts import Uninterrupted
from engine.model import Placement
from engine.runtime import Batcher
from engine.search import DVTS, BeamSearch, BestOfN, Lookahead, Majority

from .builders import PROBLEMS, assert_idle, fingerprint, load_engine, models, runners, searches

STRATEGIES = [Majority(), BestOfN(), BeamSearch(width=2), Lookahead(width=2, lookahead=1), DVTS(width=2)]
by_name = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
ON_GPU_PATH = Placement(torch.device("cpu"), "native")
OPTIONS = {"max_tokens": 14, "seed": 2}


def run_ticks(coroutine, num_ticks: int) -> int:
    """Drives a search for so many forward passes; the number it took, which is less if it has ended."""
    request = None
    for tick in range(num_ticks):
        while request is None or request.is_done:
            try:
                request = coroutine.send(None)
            except StopIteration:
                return tick
        request.runner.tick()
    return num_ticks


@by_name
@pytest.mark.parametrize(
    ("num_blocks", "device"),
    [(64, "cpu"), (8, "cpu"), (64, ON_GPU_PATH)],
    ids=["roomy", "tight", "the path of a GPU"],
)
def test_a_search_closed_after_any_forward(folders, strategy, num_blocks, device):
    engine = load_engine(folders, num_blocks=num_blocks, max_chunk=8, device=device)
    problem = PROBLEMS[3]

    def start():
        return next(searches(engine, [problem], strategy, 4, **OPTIONS))

    num_ticks = run_ticks(start(), 10_000)
    assert num_ticks > 10
    for limit in range(0, num_ticks, 1 if device == "cpu" else 4):  # of a GPU's path each is slow
        coroutine = start()
        assert run_ticks(coroutine, limit) == limit
        coroutine.close()
        assert_idle(*runners(engine))
    got = engine.search([problem], strategy, 4, **OPTIONS)
    want = load_engine(folders, device=device).search([problem], strategy, 4, **OPTIONS)
    assert [fingerprint(result) for result in got] == [fingerprint(result) for result in want]


@by_name
def test_a_search_closed_at_any_await(folders, strategy):
    """Also before the first forward, and when a request is done but not yet collected."""
    engine = load_engine(folders)
    for num_awaits in range(1, 100):
        coroutine = next(searches(engine, PROBLEMS[:1], strategy, 4, **OPTIONS))
        try:
            for index in range(num_awaits):
                request = coroutine.send(None)
                if index + 1 < num_awaits:
                    engine.prm.run(request) if request.runner is engine.prm.runner else engine.policy.run(request)
        except StopIteration:
            break
        coroutine.close()
        assert_idle(*runners(engine))
    assert 2 <= num_awaits < 99
    assert_idle(*runners(engine))


def test_results_abandoned_after_any_problem(folders):
    engine = load_engine(folders)
    strategy = BeamSearch(width=2)
    want = [fingerprint(result) for result in engine.search(PROBLEMS, strategy, 4, **OPTIONS)]
    for num_taken in range(len(PROBLEMS) + 1):
        results = engine.search_iter(PROBLEMS, strategy, 4, **OPTIONS)
        for _ in range(num_taken):
            next(results)
        results.close()
        assert_idle(*runners(engine))
    assert [fingerprint(result) for result in engine.search(PROBLEMS, strategy, 4, **OPTIONS)] == want


@pytest.fixture
def default_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_at_any_call_leaves_the_engine_usable(folders, default_sigint):
    """The signal arrives at calls all over a search, forwards and the wake-ups of searches among them."""
    engine = load_engine(folders)
    strategy = BeamSearch(width=2)
    want = [fingerprint(result) for result in engine.search(PROBLEMS, strategy, 4, **OPTIONS)]

    def interrupted(at: int) -> bool:
        """Whether a search came so far: the signal arrives at its `at`-th call of a Python function."""
        calls = 0

        def count(_frame, event, _argument):
            nonlocal calls
            calls += event == "call"
            if calls == at:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

        results = engine.search_iter(PROBLEMS, strategy, 4, **OPTIONS)
        sys.setprofile(count)
        try:
            for _ in results:
                pass
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
            results.close()
        return False

    at = 1
    while interrupted(at):
        assert_idle(*runners(engine))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        at += 97
    assert at > 97 * 20
    assert [fingerprint(result) for result in engine.search(PROBLEMS, strategy, 4, **OPTIONS)] == want


def test_a_second_ctrl_c_is_not_held_back(default_sigint):
    reached = []

    def press_twice() -> None:
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached.append(1)
            signal.raise_signal(signal.SIGINT)
            reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert reached == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("fails_at", range(6))
def test_a_verifier_that_raises_ends_the_search_and_nothing_else(folders, fails_at):
    engine = load_engine(folders)
    calls = []

    def judge(prompt: str, steps: list[str]) -> float:
        calls.append(prompt)
        if len(calls) > fails_at:
            raise RuntimeError("no verdict")
        return 0.5

    with pytest.raises(RuntimeError, match="no verdict"):
        engine.search(PROBLEMS, BeamSearch(width=2), 4, verifier=judge, **OPTIONS)
    assert_idle(*runners(engine))


def test_an_error_ends_its_own_search_alone(folders):
    """One prompt among five is over the context: its error comes in the place of its result."""
    engine = load_engine(folders)
    strategy = BestOfN()
    want = [fingerprint(result) for result in engine.search(PROBLEMS, strategy, 4, **OPTIONS)]
    long = PROBLEMS[0].__class__("long", "1" * 2000, None)
    coroutines = searches(engine, [*PROBLEMS[:2], long, *PROBLEMS[2:]], strategy, 4, **OPTIONS)
    results = dict(Batcher().run(models(engine), coroutines, rows_each=4))
    assert isinstance(results[2], ValueError)
    assert "2000 tokens" in str(results[2])
    assert [fingerprint(results[index]) for index in (0, 1, 3, 4, 5)] == want
    assert_idle(*runners(engine))


def test_a_verifier_that_the_batcher_was_not_told_of(folders):
    """Its model is driven all the same: requests name their runner."""
    engine = load_engine(folders)

    class Wrapped:
        def __init__(self, inner):
            self.open, self.score = inner.open, inner.score

    inner = engine.resolve_verifier("prm")
    strategy = BeamSearch(width=2)
    want = [fingerprint(result) for result in engine.search(PROBLEMS, strategy, 4, **OPTIONS)]
    got = engine.search(PROBLEMS, strategy, 4, verifier=Wrapped(inner), **OPTIONS)
    assert [fingerprint(result) for result in got] == want
    assert_idle(*runners(engine))


def test_two_iterations_at_once(folders):
    """Two consumers of one engine, taking turns."""
    engine = load_engine(folders)
    strategies = [BeamSearch(width=2), BestOfN()]
    want = [[fingerprint(r) for r in engine.search(PROBLEMS, strategy, 4, **OPTIONS)] for strategy in strategies]
    iterators = [engine.search_iter(PROBLEMS, strategy, 4, **OPTIONS) for strategy in strategies]
    got = [{}, {}]
    for _ in PROBLEMS:
        for which, iterator in enumerate(iterators):
            index, result = next(iterator)
            got[which][index] = fingerprint(result)
    assert [[found[index] for index in range(len(PROBLEMS))] for found in got] == want
