"""Forwards that a GPU's host starts without having seen what those before drew: the same results, the same tree."""

import numpy as np
import pytest
import torch

from engine.model import Placement, load_trunk_head, read_config
from engine.runtime.executors import gpu, gpu_step
from engine.runtime.executors.gpu import GPUExecutor, counts_until_end
from engine.types import Sampling

from .builders import NAN, assert_idle, load_llm

NATIVE = Placement(torch.device("cpu"), "native")
PROMPTS = ["473;+38;*27\n", "12;+3;*4\n", "9;*9\n"]


def load(folders, num_blocks: int = 512):
    head = load_trunk_head(folders.trunk_head, read_config(folders.policy), torch.float32)
    llm = load_llm(folders.policy, device=NATIVE, trunk_head=head, num_blocks=num_blocks)
    llm.read_trunk_head_at(llm.vocabulary.token_mask(["1", "\n"]))
    return llm


def sample_all(llm, monkeypatch, max_ahead: int, **options):
    """Results of answers to all prompts, and in how many ticks; the tree holds what the branches say at all times."""
    monkeypatch.setattr(gpu, "MAX_AHEAD", max_ahead)
    roots = [llm.open(prompt) for prompt in PROMPTS]
    branches = [branch for root in roots for branch in root.fork(5)]
    keys = range(100, 100 + len(branches))
    request = llm.queue_generate(branches, keys, sampling=Sampling(temperature=1.2, top_p=0.9), **options)
    runner, num_calls = llm.runner, 0
    while not request.is_done:
        runner.tick(64)
        num_calls += 1
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
    for branch in branches + roots:
        branch.close()
    assert_idle(runner)
    return request.results, num_calls


@pytest.mark.parametrize("stop", [(), ("\n",)])
@pytest.mark.parametrize("num_blocks", [512, 11])
def test_the_same_results(folders, monkeypatch, stop, num_blocks):
    options = {"stop": stop, "max_tokens": [1 + 3 * i for i in range(5 * len(PROMPTS))]}
    want, num_one = sample_all(load(folders), monkeypatch, 1, **options)
    assert sum(len(sampled.trunk_scores) for sampled in want) > 10
    llm = load(folders, num_blocks)
    found, num_calls = sample_all(llm, monkeypatch, gpu_step.MAX_AHEAD, **options)
    assert [(s.token_ids, s.finish) for s in found] == [(s.token_ids, s.finish) for s in want]
    for one, other in zip(found, want, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.trunk_scores == pytest.approx(other.trunk_scores, abs=1e-5)
    if num_blocks == 512:
        assert num_calls < num_one / 2
    else:
        assert llm.runner.num_suspensions > 0


def test_what_follows_an_error_is_taken_back(folders, monkeypatch):
    """The model fails wherever it reads a token that the branches draw: a row that has failed runs on to no effect."""
    found = []
    for max_ahead in (1, gpu_step.MAX_AHEAD):
        llm = load(folders)
        (bad,) = llm.encode("|")
        embedding = llm.runner.parts.decoder.embedding
        head = llm.runner.parts.lm_head
        if head.weight.data_ptr() == embedding.data_ptr():
            head.weight = embedding.clone()
        embedding[bad] = NAN
        results, _ = sample_all(llm, monkeypatch, max_ahead, stop=(), max_tokens=25)
        found.append([(s.token_ids, s.finish) for s in results])
    assert found[0] == found[1]
    assert 0 < sum(finish == "error" for _, finish in found[0]) < len(found[0])


def test_rows_count_until_their_end_or_limit():
    is_end = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]], bool)
    assert counts_until_end(is_end, np.array([9, 9, 1, 2], np.int32)).tolist() == [3, 1, 1, 2]
    assert counts_until_end(is_end, np.array([9, 9, 9, 3], np.int32)).dtype == np.int32


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


def test_prefixes_stay_cached_for_tokens_that_may_be_taken_back(folders, monkeypatch):
    """One forward at a time where only blocks of closed prompts are left."""
    llm = load(folders, num_blocks=14)
    llm.runner.stops.is_eos[:-1] = False
    tree, plan_ahead, found = llm.runner.tree, GPUExecutor._plan_ahead, []
    closed = llm.open([5 + i % 9 for i in range(96)])
    llm.next_logits([closed])
    closed.close()
    num_cached = tree.num_cached_blocks

    def watched(self, active):
        before = tree.num_cached_blocks
        plan = plan_ahead(self, active)
        found.append(plan is not None)
        assert tree.num_cached_blocks == before
        return plan

    monkeypatch.setattr(GPUExecutor, "_plan_ahead", watched)
    branches = llm.open([5, 6, 7]).fork(3)
    request = llm.queue_generate(branches, range(3), sampling=Sampling(temperature=1.2), max_tokens=44)
    for _ in range(3):  # so that a block is full in the middle of a run of four
        llm.runner.tick()
    while not request.is_done:
        llm.runner.tick(64)
    assert {True, False} == set(found)
    assert tree.num_cached_blocks < num_cached, "they are given up for what has to be kept"
