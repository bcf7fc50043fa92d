"""Two threads in one model, and a verifier that calls the engine that called it."""

import threading

import pytest

from engine.engine import Engine
from engine.errors import UserError
from engine.runtime import LLM
from engine.runtime.one_thread import OneThread
from engine.search import BeamSearch, BestOfN

from .builders import PROBLEMS, assert_idle, fingerprint, load_engine, runners

OPTIONS = {"max_tokens": 14, "seed": 2}
STRATEGY = BeamSearch(width=2)
MAX_SECONDS = 120.0


@pytest.fixture
def engine(folders) -> Engine:
    return load_engine(folders)


def in_a_thread(call) -> BaseException | object:
    """What the call returns, or raises, in a thread of its own."""
    found = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(MAX_SECONDS)
    assert not thread.is_alive(), "it waits"
    return found[0]


def prints(engine: Engine, **options) -> list[str]:
    return [fingerprint(result) for result in engine.search(PROBLEMS, STRATEGY, 4, **OPTIONS, **options)]


def calls_into(engine: Engine) -> dict:
    """All that a second thread might do to a model of the engine: searches alone may go beside one another."""
    llm: LLM = engine.policy
    branch = llm.open("1+2\n")
    return {
        "generate": lambda: llm.generate([branch], max_tokens=2),
        "append": lambda: llm.append([branch], [[5]]),
        "append lazily": lambda: llm.append([branch], [[5]], is_lazy=True),
        "next_logits": lambda: llm.next_logits([branch]),
        "open": lambda: llm.open("1+2\n"),
        "fork": lambda: branch.fork(2),
        "rewind": lambda: branch.rewind(1),
        "clear_cache": llm.clear_cache,
    }, branch


def test_a_second_thread_is_refused_at_once(engine):
    calls, branch = calls_into(engine)
    want, raised, tokens = prints(engine), {}, branch.token_ids

    def judge(_prompt: str, steps: list[str]) -> float:
        for name, call in calls.items():
            if name not in raised:
                raised[name] = in_a_thread(call)
        return 0.5 if len(steps) % 2 else 0.25

    undisturbed = prints(engine, verifier=lambda _prompt, steps: 0.5 if len(steps) % 2 else 0.25)
    assert prints(engine, verifier=judge) == undisturbed
    assert list(raised) == list(calls)
    for error in raised.values():
        assert isinstance(error, UserError)
        assert "in use by another thread" in str(error)
    assert branch.token_ids == tokens
    branch.close()
    assert prints(engine) == want
    assert_idle(*runners(engine))


def test_a_branch_is_closed_after_another_threads_step(engine):
    """Closing is not refused: what is not given back then would never be."""
    branch = engine.policy.open("1+2\n")
    want = prints(engine, verifier=lambda _prompt, _steps: 0.5)
    closing = threading.Thread(target=branch.close)

    def judge(_prompt: str, _steps: list[str]) -> float:
        if closing.ident is None:
            closing.start()
            closing.join(0.05)
            assert closing.is_alive(), "it waits for this step"
        return 0.5

    assert prints(engine, verifier=judge) == want
    closing.join(MAX_SECONDS)
    assert not branch.is_open
    assert_idle(*runners(engine))


def test_threads_may_take_turns(engine):
    want = prints(engine)
    assert in_a_thread(lambda: prints(engine)) == want
    results = engine.search_iter(PROBLEMS, STRATEGY, 4, **OPTIONS)
    first = next(results)  # suspended: nobody is inside
    assert in_a_thread(lambda: prints(engine)) == want
    rest = in_a_thread(lambda: list(results))
    found = dict([first, *rest])
    assert [fingerprint(found[index]) for index in range(len(PROBLEMS))] == want
    assert_idle(*runners(engine))


def test_a_verifier_may_not_search_with_the_engine_that_calls_it(engine):
    want = prints(engine)

    def judge(_prompt: str, _steps: list[str]) -> float:
        return engine.search(PROBLEMS[:1], BestOfN(), 2, **OPTIONS)[0].candidates[0].agg_score

    with pytest.raises(UserError, match="the engine is at work, and what it called"):
        engine.search(PROBLEMS, STRATEGY, 4, verifier=judge, **OPTIONS)
    assert_idle(*runners(engine))
    assert prints(engine) == want


def test_a_verifier_may_search_with_another_engine(folders, engine):
    """Also with one of the same policy."""
    want = prints(engine, verifier=lambda _prompt, _steps: 0.5)
    for other in (load_engine(folders), Engine(engine.policy, prm=engine.prm)):

        def judge(_prompt: str, _steps: list[str], other: Engine = other) -> float:
            other.search(PROBLEMS[:1], BestOfN(), 2, **OPTIONS)
            return 0.5

        assert prints(engine, verifier=judge) == want
        assert_idle(*runners(engine), *runners(other))


def test_a_search_may_run_between_the_results_of_another(engine):
    want = prints(engine)
    for _ in engine.search_iter(PROBLEMS, STRATEGY, 4, **OPTIONS):
        assert prints(engine) == want
    assert_idle(*runners(engine))


def test_the_thread_inside_may_enter_again():
    with OneThread("a door") as door, door:
        error = in_a_thread(door.__enter__)
        assert str(error).startswith("a door is in use by another thread")
    assert in_a_thread(door.__enter__) is door
