"""A GPU's forwards are started before those before them have been read: the same results, the same tree."""

import numpy as np
import pytest
import torch

from engine.model import Placement, load_trunk_head, read_config
from engine.runtime.executors import gpu
from engine.runtime.executors.gpu import GPUExecutor
from engine.runtime.requests import StopCondition
from engine.types import Sampling

from .builders import NAN, assert_idle, load_llm

NATIVE = Placement(torch.device("cpu"), "native")
PROMPTS = ["?5?2?=c;d3?\n", "?3?5?=a\n", "d1?\n"]


def load(folders, num_blocks: int = 512):
    head = load_trunk_head(folders.trunk_head, read_config(folders.policy), torch.float32)
    llm = load_llm(folders.policy, device=NATIVE, trunk_head=head, num_blocks=num_blocks)
    llm.read_trunk_head_at(llm.vocabulary.token_mask(["1", "\n"]))
    return llm


class Waiting(GPUExecutor):
    """Each forward is read before the next is started."""

    is_asynchronous = False


def sample_all(llm, model: type[GPUExecutor], **options):
    """Results of answers to all prompts, and how many forwards were started beside another.

    Between ticks the tree holds what the branches say.
    """
    runner = llm.runner
    runner.executor = executor = model(runner.parts)
    launch, num_beside = executor.launch, [0]

    def counted(forward, marks):
        num_beside[0] += runner.is_in_flight
        return launch(forward, marks)

    executor.launch = counted
    roots = [llm.open(prompt) for prompt in PROMPTS]
    branches = [branch for root in roots for branch in root.fork(5)]
    keys = range(100, 100 + len(branches))
    request = llm.queue_generate(branches, keys, sampling=Sampling(temperature=1.2, top_p=0.9), **options)
    while not request.is_done:
        runner.tick(3)
        runner.tree.check_integrity()
        for job in runner.table.decoding_jobs():
            ((drawn, _),) = runner.table.generated([job.row])
            assert runner.tree.tokens(job.partial.handle).tolist() == [*job.partial.origin.token_ids(), *drawn[:-1]]
    for branch in branches:
        if branch.segment.is_resident:
            held = runner.tree.tokens(branch.segment.handle).tolist()
            assert held == branch.token_ids[: len(held)]
            assert len(held) >= branch.num_tokens - 1
        assert len(branch.token_ids) == branch.num_tokens
    bill = [(root.ledger.tokens, root.ledger.flops) for root in roots]
    for branch in branches + roots:
        branch.close()
    assert_idle(runner)
    return request.results, bill, num_beside[0]


@pytest.mark.parametrize("stop", [(), ("\n",)])
@pytest.mark.parametrize(("num_blocks", "max_mixed"), [(512, 256), (512, 4), (11, 256)])
def test_the_same_results(folders, monkeypatch, stop, num_blocks, max_mixed):
    """In steps, in forwards launched op by op, and in a pool in which branches are suspended."""
    options = {"stop": stop, "max_tokens": [1 + 3 * i for i in range(5 * len(PROMPTS))]}
    want, want_bill, num_beside = sample_all(load(folders), Waiting, **options)
    assert num_beside == 0
    assert sum(len(sampled.trunk_scores) for sampled in want) > 10
    monkeypatch.setattr(gpu, "MAX_MIXED", max_mixed)
    llm = load(folders, num_blocks)
    found, bill, num_beside = sample_all(llm, GPUExecutor, **options)
    assert [(s.token_ids, s.finish) for s in found] == [(s.token_ids, s.finish) for s in want]
    for one, other in zip(found, want, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.trunk_scores == pytest.approx(other.trunk_scores, abs=1e-5)
    is_mixed = any(kind.is_mixed for kind in llm.runner.executor._steps)
    assert is_mixed == (max_mixed == 256)
    if num_blocks == 512:
        assert bill == want_bill, "what a row runs past its end is not billed"
        assert num_beside > 10
    else:
        assert llm.runner.num_suspensions > 0


def test_what_follows_an_error_is_taken_back(folders):
    """The model fails wherever it reads a token that the branches draw: a row that has failed runs on to no effect."""
    found = []
    for model in (Waiting, GPUExecutor):
        llm = load(folders)
        (bad,) = llm.encode("|")
        embedding = llm.runner.parts.decoder.embedding
        head = llm.runner.parts.lm_head
        if head.weight.data_ptr() == embedding.data_ptr():
            head.weight = embedding.clone()
        embedding[bad] = NAN
        results, *_ = sample_all(llm, model, stop=(), max_tokens=25)
        found.append([(s.token_ids, s.finish) for s in results])
    assert found[0] == found[1]
    assert 0 < sum(finish == "error" for _, finish in found[0]) < len(found[0])


@pytest.mark.parametrize("num_ticks", [1, 2, 3, 7])
def test_a_row_is_used_again_while_the_forward_of_its_last_job_runs(folders, num_ticks):
    """Branches that are closed in flight leave no token to those that get their rows."""
    alone = load(folders)
    root = alone.open(PROMPTS[0])
    (want,) = alone.generate(root.fork(1), max_tokens=9, sampling=Sampling(temperature=1.2), seed=3)
    llm = load(folders)
    llm.runner.table.batch_size = 4
    del llm.runner.table._free[4:]
    root = llm.open(PROMPTS[0])
    closed, others = llm.open(PROMPTS[1]).fork(4), llm.open(PROMPTS[2]).fork(3)
    llm.queue_generate(closed, range(4), sampling=Sampling(temperature=1.2), max_tokens=30)
    later = llm.queue_generate(others, range(4, 7), sampling=Sampling(temperature=1.2), max_tokens=12)
    for _ in range(num_ticks):
        llm.runner.tick()
    assert llm.runner.is_in_flight
    for branch in closed[1:]:
        branch.close()
    branches = root.fork(1)
    assert llm.generate(branches, max_tokens=9, sampling=Sampling(temperature=1.2), seed=3) == [want]
    llm.run(later)
    again = load(folders)
    repeated = again.queue_generate(
        again.open(PROMPTS[2]).fork(3), range(4, 7), sampling=Sampling(temperature=1.2), max_tokens=12
    )
    again.run(repeated)
    assert [(s.token_ids, s.finish) for s in later.results] == [(s.token_ids, s.finish) for s in repeated.results]


def test_no_forward_runs_past_the_context(folders):
    """A branch at the context's end beside one that goes on: rope has no angles behind it."""
    llm = load(folders)
    context = llm.config.context
    long, short = (llm.open([5 + i % 9 for i in range(length)]) for length in (context - 3, 3))
    branches = [branch for root in (long, short) for branch in root.fork(1)]
    request = llm.queue_generate(branches, [1, 2], sampling=Sampling(temperature=1.2), max_tokens=[3, 20])
    llm.run(request)
    lengths = [len(sampled.token_ids) for sampled in request.results]
    assert lengths[0] <= 3
    assert branches[0].num_tokens <= context
    for branch in (*branches, long, short):
        branch.close()
    assert_idle(llm.runner)


def test_prefixes_stay_cached_for_tokens_that_may_be_taken_back(folders):
    """A forward is read before the next where only blocks of closed prompts are left for that."""
    llm = load(folders, num_blocks=14)
    llm.runner.stops.is_eos[:-1] = False
    runner, tree, found = llm.runner, llm.runner.tree, []
    closed = llm.open([5 + i % 9 for i in range(96)])
    llm.next_logits([closed])
    closed.close()
    num_cached, launch = tree.num_cached_blocks, runner.executor.launch
    last = [num_cached]

    def watched(forward, marks):
        if runner.is_in_flight:
            assert tree.num_cached_blocks == last[0]
        found.append(runner.is_in_flight)
        last[0] = tree.num_cached_blocks
        return launch(forward, marks)

    runner.executor.launch = watched
    branches = llm.open([5, 6, 7]).fork(3)
    request = llm.queue_generate(branches, range(3), sampling=Sampling(temperature=1.2), max_tokens=44)
    while not request.is_done:
        runner.tick(64)
    assert {True, False} == set(found[1:])
    assert tree.num_cached_blocks < num_cached, "they are given up for what has to be kept"


@pytest.mark.parametrize(("num_repeated", "rest"), [(15, [0, 7]), (16, [7])], ids=["all but one", "whole"])
def test_a_prompt_that_begins_with_what_is_being_generated(folders, num_repeated, rest):
    """It shares the blocks whose tokens are known, and the branch can still take its last token back."""
    options = {"max_tokens": 30, "sampling": Sampling(temperature=1.2)}
    prompt = [5 + i % 9 for i in range(16)]
    alone = load(folders)
    everything = alone.runner.stops.add(np.ones(alone.config.vocab_size, bool))
    stop = StopCondition(everything, lambda _branch, tokens: "step" if len(tokens) == 17 else None)
    want = alone.queue_generate(alone.open(prompt).fork(1), [1], stop=stop, **options)
    alone.run(want)
    repeated = [*prompt, *want.results[0].token_ids[:num_repeated], *rest]
    want_logits = alone.next_logits([alone.open(repeated)])
    for num_ticks in range(14, 20):  # those around the forward that fills the block
        llm = load(folders)
        llm.runner.stops.add(np.ones(llm.config.vocab_size, bool))
        (branch,) = llm.open(prompt).fork(1)
        request = llm.queue_generate([branch], [1], stop=stop, **options)
        for _ in range(num_ticks):
            llm.runner.tick()
        later = llm.open(repeated)
        torch.testing.assert_close(llm.next_logits([later]), want_logits, atol=1e-4, rtol=0)
        llm.run(request)
        assert request.results[0].token_ids == want.results[0].token_ids
        llm.runner.tree.check_integrity()
