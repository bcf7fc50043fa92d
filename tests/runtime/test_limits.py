"""Whatever a call is given, and whatever it raises: nothing leaks, and the model can be used at once."""

import math

import numpy as np
import pytest
import torch

from engine.errors import UserError
from engine.model import Placement
from engine.runtime import LLM, Batcher, StopCondition
from engine.runtime.executors.gpu import GPUExecutor
from engine.runtime.kv import default_bytes
from engine.search import Adaptive, BeamSearch, BestOfN, Lookahead, Rebase, Revisions
from engine.types import Sampling

from .builders import PROBLEMS, assert_idle, fingerprint, load_engine, load_llm, models, runners, searches

OPTIONS = {"max_tokens": 14, "seed": 2}
HUGE = 10**5000  # Python refuses to write down so many digits
NO_COUNTS = [4.0, True, "4", None, math.nan, HUGE, -HUGE, -1, 0, [4]]
NO_SAMPLINGS = [
    *({"temperature": value} for value in (-1.0, math.nan, math.inf, 1e39, HUGE, "1", None, True, 1j)),
    *({"top_k": value} for value in (-1, 2**31, HUGE, 5.0, True, None)),
    *({"top_p": value} for value in (0, 1.5, math.nan, 1e-40, "1", None)),
    *({"min_p": value} for value in (-0.1, 1.5, math.nan, None)),
]


@pytest.fixture
def llm(folders) -> LLM:
    return load_llm(folders.policy, num_blocks=64)


def test_sampling_out_of_range():
    for options in NO_SAMPLINGS:
        (name,) = options
        with pytest.raises(UserError, match=f"^{name} must be "):
            Sampling(**options)


def test_sampling_at_its_bounds(llm):
    """Nothing that `Sampling` takes is refused, or read as something else, further down."""
    branch = llm.open("1+2\n")
    bounds = {"temperature": (0, 1e-45, 3.4e38), "top_k": (0, 2**31 - 1), "top_p": (1.2e-38, 1), "min_p": (0, 1)}
    for name, values in bounds.items():
        for value in values:
            (result,) = llm.generate(branch.fork(1), max_tokens=2, sampling=Sampling(**{name: value}))
            assert result.finish != "error"
    assert Sampling(np.float32(0.5), np.int64(3)) == Sampling(0.5, 3)
    assert type(Sampling(np.float32(0.5), np.int64(3)).top_k) is int


def bad_calls(llm: LLM, branches: list) -> list:
    """Each raises, and has to leave all as it was."""
    keys, one = [1, 2, 3], branches[:1]

    def queue(**options):
        return lambda: llm.queue_generate(branches, **{"keys": keys, "max_tokens": 5, **options})

    def append(**options):
        return lambda: llm.queue_append(branches, **{"tokens": [[5]] * 3, **options})

    calls = [
        lambda value=value: llm.generate(branches, max_tokens=value) for value in NO_COUNTS if value not in (HUGE,)
    ]
    calls += [lambda value=value: llm.generate(branches, seed=value) for value in (4.0, True, None, HUGE, 2**63, "a")]
    calls += [lambda value=value: llm.generate(branches, sampling=value) for value in (1, {"temperature": 1.0}, "hot")]
    calls += [
        lambda value=value: llm.generate(branches, stop=value) for value in ("\n", [""], [5], None, 3, ["no text"])
    ]
    calls += [lambda value=value: branches[0].fork(value) for value in NO_COUNTS]
    calls += [queue(keys=value) for value in ([1], [1, 2, 3, 4], [1, 2, -3], [1, 2, 2**64], [1, 2, 3.0], [1, 2, HUGE])]
    calls += [queue(max_tokens=value) for value in ([5, 5], [5, 5, 0], [5, 5, 4.0], [5, 5, None])]
    calls += [queue(priorities=value) for value in ([1.0], [1.0, 2.0, "high"], [None] * 3)]
    calls += [queue(purpose="fun"), queue(stop=StopCondition(99)), append(purpose="fun")]
    calls += [append(tokens=value) for value in ([[5]], [[5], [5], [1.5]], [[5], [5], ["a"]], [[5], [5], 5], [[5]] * 4)]
    calls += [append(score_at=value) for value in ([[0]], [[0]] * 3)]
    calls += [lambda: llm.queue_append_steps(one, [[[5]]]), lambda: llm.queue_append_steps(one, [[[]]])]
    calls += [lambda: llm.append(one, [[torch.nan]]), lambda: llm.append(one, [[5]] * 2, is_lazy=True)]
    calls += [lambda: llm.open([1.5]), lambda: llm.open(None), lambda: llm.open("1+2", purpose="fun")]
    return [*calls, lambda: llm.next_logits([*one, None]), lambda: llm.generate([*one, "x"])]


def test_calls_that_are_refused(llm):
    root = llm.open(PROBLEMS[0].prompt)
    branches = root.fork(3)
    want, tokens = llm.next_logits(branches), root.token_ids
    kept = llm.runner.tree.num_free_blocks, llm.runner.tree.num_open
    for number, call in enumerate(bad_calls(llm, branches)):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            llm.run(call())  # where the runner is the first to know
        assert not llm.runner.has_work, number
        assert [branch.job for branch in branches] == [None] * 3, number
        assert [branch.token_ids for branch in branches] == [tokens] * 3, number
    assert torch.equal(llm.next_logits(branches), want)
    assert (llm.runner.tree.num_free_blocks, llm.runner.tree.num_open) == kept
    llm.generate(branches, max_tokens=np.int64(3), seed=np.int64(1))
    llm.append(branches, np.full((3, 2), 5))
    for branch in (*branches, root):
        branch.close()
    assert_idle(llm.runner)


class Broken(Exception):
    """What a forward raises."""


def break_after(llm: LLM, num_calls: int, error: BaseException) -> None:
    """From now on the model's executor raises at its `num_calls`-th call: KV that was reserved stays NaN."""
    executor, left = llm.runner.executor, [num_calls]

    def breaking(method):
        def call(*args):
            left[0] -= 1
            if left[0] == 0:
                raise error
            return method(*args)

        return call

    if isinstance(executor, GPUExecutor):
        launch = breaking(executor.launch)

        def launching(forward, marks):
            launched = launch(forward, marks)
            launched.fetch.arrays = breaking(launched.fetch.arrays)  # a GPU's errors show when something is read
            return launched

        executor.launch = launching
        return
    for name in ("forward", "launch", "decode", "scores"):
        setattr(executor, name, breaking(getattr(executor, name)))


@pytest.mark.parametrize("device", ["cpu", Placement(torch.device("cpu"), "native")], ids=["cpu", "the path of a GPU"])
@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_forward_that_fails(folders, error, device):
    """At every call of the executor: the same answers after it, from the KV of no half-done forward."""
    clean = load_llm(folders.policy, num_blocks=64, device=device)

    def work(llm: LLM) -> tuple:
        root = llm.open(PROBLEMS[0].prompt)
        try:
            beams = root.fork(3)
            results = llm.generate(beams, max_tokens=8, seed=1)
            llm.append(beams, [[5, 6]] * 3)
            return [result.token_ids for result in results], llm.next_logits(beams).tolist()
        finally:
            for branch in (*beams, root):
                branch.close()

    want = work(clean)
    for at in range(1, 100):
        llm = load_llm(folders.policy, num_blocks=64, max_chunk=8, device=device)
        idle = llm.open("1+2\n")
        logits = llm.next_logits([idle])
        break_after(llm, at, error)
        try:
            done = work(llm)
        except type(error):
            assert not llm.runner.has_work
            assert work(llm) == want
            assert torch.equal(llm.next_logits([idle]), logits)
            idle.close()
            assert_idle(llm.runner)
        else:
            assert done == want
            break
    assert at > 8


def test_a_forward_that_fails_ends_all_searches_and_leaks_nothing(folders):
    engine = load_engine(folders, num_blocks=64)
    strategy = BeamSearch(width=2)
    want = [fingerprint(result) for result in engine.search(PROBLEMS, strategy, 4, **OPTIONS)]
    for llm in models(engine):
        for at in (1, 2):
            broken = load_engine(folders, num_blocks=64)
            break_after(models(broken)[models(engine).index(llm)], at, Broken())
            other = broken.search_iter(PROBLEMS, strategy, 4, **OPTIONS)
            with pytest.raises(Broken):
                list(other)
            assert_idle(*runners(broken))
            assert [fingerprint(result) for result in broken.search(PROBLEMS, strategy, 4, **OPTIONS)] == want
            assert_idle(*runners(broken))


def test_searches_that_are_refused(folders):
    engine = load_engine(folders, num_blocks=64)
    bad = [("budget", value) for value in NO_COUNTS]
    bad += [("max_tokens", value) for value in NO_COUNTS if value not in (None, HUGE)]
    bad += [("seed", value) for value in (4.0, True, None, HUGE, "0")]
    bad += [("sampling", value) for value in (1.0, {"temperature": 1.0})]
    for name, value in bad:
        options = {"budget": 4, **OPTIONS, name: value}
        with pytest.raises(UserError, match=f"^{name} must be "):
            engine.search(PROBLEMS, BestOfN(), **options)
        with pytest.raises(UserError, match=f"^{name} must be "):
            next(engine.search_iter(PROBLEMS, BestOfN(), **options))
    fields = [(BeamSearch, "width"), (Rebase, "max_rounds"), (Lookahead, "lookahead"), (Adaptive, "batch")]
    for strategy, name in [*fields, (Revisions, "parallel"), (Revisions, "context")]:
        for value in (4.0, True, None, "4", -1):
            with pytest.raises(UserError, match=f"{name} must be "):
                strategy(**{name: value})
    assert_idle(*runners(engine))


def test_whole_numbers_of_any_kind_and_no_sampling(folders):
    engine = load_engine(folders, num_blocks=64)
    want = [fingerprint(result) for result in engine.search(PROBLEMS, BestOfN(), 4, **OPTIONS)]
    options = {"max_tokens": np.int32(14), "seed": np.int64(2), "sampling": None}
    results = engine.search(PROBLEMS, BestOfN(), np.int64(4), **options)
    assert [fingerprint(result) for result in results] == want
    assert {type(result.budget) for result in results} == {type(result.seed) for result in results} == {int}


def test_pools_that_are_refused(folders):
    for count in (4.0, True, HUGE, "64", 0):
        for name in ("num_blocks", "max_batch"):
            with pytest.raises(UserError, match=f"{name} (must be|a number of)"):
                LLM.load(folders.policy, **{name: count})


@pytest.mark.parametrize("num_blocks", [2**31, 2**40])
def test_a_pool_that_the_machine_cannot_hold(folders, num_blocks):
    per_block = 2 * 2 * 1 * 16 * 4 * 16  # keys and values of two layers, a head of 16 floats, 16 tokens
    with pytest.raises(UserError, match=rf"num_blocks {num_blocks} needs .* 4,096 bytes a block; there are \d+ MiB"):
        LLM.load(folders.policy, num_blocks=num_blocks)
    assert per_block == 4096


def test_a_branch_close_that_raises_keeps_no_other_search_open(folders):
    """A verifier's own branch fails to close: the models' are closed all the same, of every search."""
    engine = load_engine(folders)

    class Stubborn:
        def fork(self, num):
            return [Stubborn() for _ in range(num)]

        def close(self):
            raise Broken

    class Verifier:
        async def open(self, _problem, **_):
            return Stubborn()

        async def score(self, _branches, steps):
            return [[0.5] * len(each) for each in steps]

    results = engine.search_iter(PROBLEMS, BeamSearch(width=2), 4, verifier=Verifier(), **OPTIONS)
    with pytest.raises(Broken):
        next(results)
    assert_idle(*runners(engine))


def test_what_was_queued_and_never_placed_is_taken_back(folders):
    """A table of two rows: the others' jobs wait in the queue when their searches are closed."""
    engine = load_engine(folders, max_batch=1)
    coroutines = list(searches(engine, PROBLEMS, BestOfN(), 6, **OPTIONS))
    requests = [coroutine.send(None) for coroutine in coroutines]
    assert len(engine.policy.runner.queue) == 6 * len(PROBLEMS)
    engine.policy.runner.tick()
    for coroutine in coroutines[::-1]:
        coroutine.close()
    assert not any(request.is_done for request in requests)
    assert_idle(*runners(engine))
    results = Batcher().run(models(engine), searches(engine, PROBLEMS, BestOfN(), 6, **OPTIONS), rows_each=6)
    assert len(list(results)) == len(PROBLEMS)


def test_what_is_no_list_or_number_is_told_in_one_sentence(folders, llm):
    branches = llm.open("1+2\n").fork(2)

    def queue(**options):
        return lambda: llm.queue_generate(branches, **{"keys": [1, 2], "max_tokens": 5, **options})

    calls = [lambda value=value: llm.generate(branches, stop=value) for value in (5, None, [5], "x", [HUGE])]
    calls += [queue(priorities=value) for value in (["x", 1.0], [None, 1.0], 5, ["1", 1.0])]
    calls += [queue(keys=value) for value in (5, None, [1, None], [[HUGE], 1])]
    calls += [lambda value=value: branches[0].rewind(value) for value in ("x", None, 1.5, -1)]
    calls += [lambda value=value: llm.queue_append(branches, value) for value in (5, [5, 5])]
    calls += [lambda value=value: llm.append(branches, value, is_lazy=True) for value in (5, [5, 5])]
    for call in calls:
        with pytest.raises(UserError, match=r"must be .*, got .{1,90}$"):
            call()
    assert not llm.runner.has_work
    assert all(branch.job is None for branch in branches)
    with pytest.raises(UserError, match=r"^verifier must be .*, got 5$"):
        load_engine(folders, num_blocks=64).search(PROBLEMS, BestOfN(), 4, verifier=5, **OPTIONS)


def test_scores_are_read_at_new_tokens_alone(folders):
    prm = load_llm(folders.prm, num_blocks=64)
    branches = prm.open("1+2\n").fork(2)
    tokens = [[5, 6, 7, 8, 9, 10], [5]]
    for value in ([[100], [0]], [[-1], [0]], [[6], []], [[0, 5, 6], []], [[], [1]]):
        with pytest.raises(UserError, match=r"^score_at must be indices into the \d new tokens, got \["):
            prm.queue_append(branches, tokens, score_at=value)
    with pytest.raises(UserError, match=r"^score_at must be given for each of 2 branches, got 5"):
        prm.queue_append(branches, tokens, score_at=5)
    with pytest.raises(UserError, match=r"^score_at must be indices into the 0 new tokens, got \[0\]"):
        prm.queue_append(branches, [[5], []], score_at=[[0], [0]])
    assert not prm.runner.has_work
    request = prm.queue_append(branches, tokens, score_at=np.array([[0], [0]]))
    prm.run(request)
    assert all(math.isfinite(score) for scores in request.scores for score in scores)


def test_the_default_pool_shrinks_where_memory_is_small():
    assert default_bytes(64 << 30) == 1 << 30
    assert default_bytes(512 << 20) == 128 << 20
