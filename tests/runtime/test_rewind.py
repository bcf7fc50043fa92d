"""Branches that go back to where a run of their tokens began."""

import pytest
import torch

from tests.runtime.builders import assert_idle, folders, load_llm

__all__ = ["folders"]


def test_going_back_and_on_again(folders):
    llm = load_llm(folders.policy)
    prompt, first, second = [5, 6, 7], [8] * 20, [9] * 3
    branch = llm.open(prompt)
    llm.append([branch], [first])
    llm.append([branch], [second])
    (other,) = branch.fork(1)
    assert branch.rewind(26) == 26
    assert branch.rewind(25) == 23
    assert branch.token_ids == prompt + first
    assert branch.rewind(22) == 3
    assert branch.rewind(3) == 3
    assert branch.rewind(2) == 0
    assert branch.token_ids == prompt, "a prompt is not divided"
    assert other.token_ids == prompt + first + second
    llm.append([branch], [first + second])
    fresh = llm.open(prompt)
    llm.append([fresh], [first + second])
    logits = llm.next_logits([branch, other, fresh])
    assert torch.equal(logits[0], logits[2])
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    for each in (branch, other, fresh):
        each.close()
    assert_idle(llm.runner)
    with pytest.raises(ValueError, match="is closed"):
        branch.rewind(1)
