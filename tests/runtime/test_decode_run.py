"""Forwards without Python between them give what one forward at a time gives."""

import pytest

from engine.runtime.requests import StopCondition
from engine.runtime.runner import MAX_FORWARDS
from engine.types import Sampling

from .builders import assert_idle, load_engine, load_llm

PROMPTS = ["?5?2?=c;d3?\n", "?3?5?=a\n", "d1?\n"]


def sample_all(llm, max_forwards: int, **options):
    """Results of answers to all prompts, ticked by so many forwards; and how many ticks it took."""
    roots = [llm.open(prompt) for prompt in PROMPTS]
    branches = [branch for root in roots for branch in root.fork(7)]
    keys = list(range(100, 100 + len(branches)))
    request = llm.queue_generate(branches, keys, sampling=Sampling(temperature=1.2, top_p=0.9), **options)
    num_calls = 0
    while not request.is_done:
        llm.runner.tick(max_forwards)
        num_calls += 1
    if request.error is not None:
        raise request.error
    for branch in branches + roots:
        branch.close()
    assert_idle(llm.runner)
    return request.results, num_calls


@pytest.mark.parametrize("stop", [(), ("\n",)])
@pytest.mark.parametrize(("max_batch", "num_blocks"), [(64, 512), (5, 512), (64, 14), (5, 8)])
def test_any_number_of_forwards_at_once(folders, stop, max_batch, num_blocks):
    options = {"stop": stop, "max_tokens": [20 + 3 * i for i in range(7 * len(PROMPTS))]}
    one = load_llm(folders.policy, max_batch=max_batch, num_blocks=num_blocks)
    want, num_one = sample_all(one, 1, **options)
    assert {sampled.finish for sampled in want} >= {"step" if stop else "length"}
    for max_forwards in (3, MAX_FORWARDS):
        llm = load_llm(folders.policy, max_batch=max_batch, num_blocks=num_blocks)
        got, num_calls = sample_all(llm, max_forwards, **options)
        assert got == want
        assert num_calls < num_one
        if num_blocks < 512:
            assert llm.runner.num_suspensions > 0
        elif max_batch == 64:
            assert llm.runner.num_ticks == one.runner.num_ticks
        else:  # sources of branches are fed in a forward of their own, several together where more end at once
            assert llm.runner.num_ticks <= one.runner.num_ticks


def test_the_trunk_head_is_read_without_a_stop(folders):
    found = []
    for max_forwards in (1, MAX_FORWARDS):
        llm = load_engine(folders, has_trunk_head=True).policy
        llm.read_trunk_head_at(llm.vocabulary.token_mask(["1"]))
        results, num_calls = sample_all(llm, max_forwards, stop=(), max_tokens=40)
        found.append(results)
    assert found[0] == found[1]
    assert sum(len(sampled.trunk_scores) for sampled in results) > num_calls


def test_as_many_stand_by_as_are_decoded(folders):
    """Of twelve branches five are decoded and five stand by, which are missed only once all of these have places."""
    llm = load_llm(folders.policy, max_batch=5)
    root = llm.open(PROMPTS[1])
    branches = root.fork(12)
    llm.queue_generate(branches, range(100, 112), max_tokens=[2] * 4 + [30] * 8)
    llm.runner.tick()
    runner, table = llm.runner, llm.runner.table
    assert (table.num_decoding, table.num_used, table.active().num_placed, len(runner.queue)) == (10, 10, 5, 2)
    assert runner.decoding.return_rule(True).num_rows == 1 + 5
    runner.tick(MAX_FORWARDS)
    assert sum(branch.job is None for branch in branches) >= 6
    for branch in [*branches, root]:
        branch.close()
    assert_idle(runner)


def test_a_branch_that_stands_by_is_asked_about_once(folders):
    """Whether a branch goes on behind a stop token is asked when it has drawn one, not as long as that is its last."""
    llm = load_llm(folders.policy, max_batch=2)
    asked = []
    rule = llm.stop_rule([str(digit) for digit in range(10)])
    stop = StopCondition(rule, lambda branch, tokens: asked.append((branch.address, len(tokens))))
    branches = llm.open(PROMPTS[0]).fork(8)
    request = llm.queue_generate(branches, range(8), max_tokens=40, sampling=Sampling(temperature=1.2), stop=stop)
    while not request.is_done:
        llm.runner.tick(MAX_FORWARDS)
    assert len(asked) > 20
    assert len(set(asked)) == len(asked)


def test_who_gives_way_gives_blocks_back(folders, monkeypatch):
    """Not those that stand by, which hold none, while there are others."""
    llm = load_llm(folders.policy, max_batch=6, num_blocks=12)
    llm.runner.stops.is_eos[:-1] = False
    runner, freed = llm.runner, []
    suspend = runner.suspend

    def watched(job):
        before = runner.tree.num_free_blocks
        suspend(job)
        freed.append(runner.tree.num_free_blocks - before)

    monkeypatch.setattr(runner, "suspend", watched)
    branches = llm.open(PROMPTS[0]).fork(14)
    llm.generate(branches, max_tokens=40, sampling=Sampling(temperature=1.2), seed=1)
    assert len(freed) > 3
    assert min(freed) > 0


def test_what_decoding_waits_for(folders):
    """A request without others in line is missed as a whole, but for branches that may go on after all."""
    llm = load_llm(folders.policy)
    root = llm.open(PROMPTS[1])
    branches = root.fork(5)
    goes_on = StopCondition(llm.stop_rule([]), lambda branch, tokens: None)
    requests = [
        llm.queue_generate(branches[:3], [1, 2, 3], max_tokens=30),
        llm.queue_generate(branches[3:], [4, 5], max_tokens=30, stop=goes_on),
    ]
    llm.runner.tick()
    decoding = llm.runner.decoding
    assert [job.request for job in decoding.table.decoding_jobs()] == [requests[0]] * 3 + [requests[1]] * 2
    assert decoding.return_rule(False).groups.tolist() == [0, 0, 0, 1, 2]
    assert decoding.return_rule(True).groups.tolist() == [0, 1, 2, 3, 4]
    assert decoding.return_rule(True).num_rows == 1
    for branch in [*branches, root]:
        branch.close()
    assert_idle(llm.runner)
