"""Forwards without Python between them give what one forward at a time gives."""

import pytest

from engine.runtime.runner import MAX_FORWARDS
from engine.types import Sampling

from .builders import assert_idle, load_llm

PROMPTS = ["473;+38;*27\n", "12;+3;*4\n", "9;*9\n"]


def sample_all(llm, max_forwards: int, **options):
    """Results of answers to all prompts, ticked by so many forwards; and how many ticks it took."""
    roots = [llm.open(prompt) for prompt in PROMPTS]
    branches = [branch for root in roots for branch in root.fork(7)]
    keys = list(range(100, 100 + len(branches)))
    request = llm.sample(branches, keys, Sampling(temperature=1.2, top_p=0.9), **options)
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
@pytest.mark.parametrize(("max_batch", "num_blocks"), [(64, 512), (5, 512), (64, 14)])
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
        if num_blocks == 14:
            assert llm.runner.num_suspensions > 0
        else:
            assert llm.runner.num_ticks == one.runner.num_ticks
