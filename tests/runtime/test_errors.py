"""NaN and Inf: the candidate they hit is flagged and left out, the others do not feel it."""

import math

import pytest
import torch

from engine.model import Placement
from engine.search import BeamSearch, BestOfN, Lookahead, Majority

from .builders import NAN, PROBLEMS, assert_idle, load_engine, load_llm, runners

OPTIONS = {"max_tokens": 30, "seed": 0}
BUDGET = 12
BAD = "|"  # no prompt holds it


def poison(llm, value: float) -> None:
    """From now on the model fails wherever it reads BAD; its head is a copy, and left as it was."""
    (token,) = llm.encode(BAD)
    assert llm.runner.parts.lm_head is None or llm.runner.parts.lm_head.weight is None
    llm.runner.parts.decoder.embedding[token] = value


@pytest.mark.parametrize("value", [NAN, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("num_blocks", [512, 16], ids=["roomy", "tight"])
def test_a_policy_that_fails_on_one_token(folders, value, num_blocks):
    clean = load_engine(folders).search(PROBLEMS, Majority(), BUDGET, **OPTIONS)
    engine = load_engine(folders, num_blocks=num_blocks)
    poison(engine.policy, value)
    results = engine.search(PROBLEMS, Majority(), BUDGET, **OPTIONS)
    for before, after in zip(clean, results, strict=True):
        assert len(after.candidates) == len(before.candidates) == BUDGET
        for want, candidate in zip(before.candidates, after.candidates, strict=True):
            start, bad, rest = want.text.partition(BAD)
            if bad and (rest or want.finish == "eos"):  # the model has read it
                assert (candidate.finish, candidate.text, candidate.answer) == ("error", start + BAD, None)
            else:
                assert candidate == want
        assert after.num_errors == sum(candidate.finish == "error" for candidate in after.candidates)
    assert 5 <= sum(result.num_errors for result in results) < BUDGET * len(PROBLEMS)
    assert_idle(*runners(engine))


@pytest.mark.parametrize("strategy", [BestOfN(), BeamSearch(width=3), Lookahead(width=3, lookahead=1)])
@pytest.mark.parametrize("which", ["policy", "prm"])
def test_searches_go_on_without_what_failed(folders, strategy, which):
    engine = load_engine(folders)
    poison(getattr(engine, which), NAN)
    results = engine.search(PROBLEMS, strategy, BUDGET, **OPTIONS)
    assert_idle(*runners(engine))
    errors = [c for result in results for c in result.candidates if c.finish == "error"]
    assert sum(result.num_errors for result in results) == len(errors) > 0
    for candidate in errors:
        assert candidate.answer is None
    for result in results:
        finite = [c for c in result.candidates if c.finish != "error"]
        assert all(math.isfinite(score) for c in finite for score in c.scores)
        assert result.num_errors == len(result.candidates) - len(finite)
    # The next search of a clean prompt finds nothing of it.
    fresh = load_engine(folders)
    prompts = [llm.open("1+2\n") for llm in (engine.policy, fresh.policy)]
    assert torch.equal(engine.policy.next_logits(prompts[:1]), fresh.policy.next_logits(prompts[1:]))


def test_a_verifier_that_always_fails(folders):
    engine = load_engine(folders)
    engine.prm.runner.parts.score_head.weight.fill_(NAN)
    for strategy in (BestOfN(), BeamSearch(width=2)):
        (result,) = engine.search(PROBLEMS[:1], strategy, 8, **OPTIONS)
        ended = [c for c in result.candidates if c.finish != "length" or c.scores]
        assert result.answer is None
        assert result.num_errors == len(ended) > 0
    assert_idle(*runners(engine))


def test_a_branch_whose_first_token_fails_stays_where_it_stood(folders):
    llm = load_llm(folders.policy)
    root = llm.open("1+2" + BAD)
    good = llm.open("1+2\n")
    want = llm.next_logits([good])
    poison(llm, NAN)
    beams = root.fork(2)
    results = llm.generate([*beams, good], max_tokens=5)
    assert [(result.token_ids, result.finish) for result in results[:2]] == [((), "error")] * 2
    assert results[2].finish != "error"
    assert [beam.token_ids for beam in beams] == [root.token_ids] * 2
    assert llm.next_logits(beams).isnan().all()
    assert torch.equal(llm.next_logits([llm.open("1+2\n")]), want)
    for branch in [*beams, root]:
        branch.close()
    assert not llm.runner.has_work


def test_blocks_that_held_nan_are_used_again(folders):
    """KV that a failed branch left behind does not reach who gets its blocks next."""
    llm = load_llm(folders.policy, num_blocks=4)
    fresh = load_llm(folders.policy, num_blocks=4)
    poison(llm, NAN)
    for length in (10, 30, 50):
        bad = llm.open(BAD * length)
        assert llm.next_logits([bad]).isnan().all()
        bad.close()
        llm.clear_cache()
        good = [each.open("1+2;" * (length // 4)) for each in (llm, fresh)]
        assert torch.equal(llm.next_logits(good[:1]), fresh.next_logits(good[1:]))
        for branch in good:
            branch.close()
    assert_idle(llm.runner)


@pytest.mark.parametrize("device", ["cpu", Placement(torch.device("cpu"), "native")], ids=["cpu", "the path of a GPU"])
def test_a_forward_that_cannot_be_started(folders, device):
    """All that waited for it get its error, and their branches can be used again."""
    llm = load_llm(folders.policy, device=device)
    executor = llm.runner.executor
    launch = executor.launch

    def fails(*_):
        raise RuntimeError("no launch")

    executor.launch = fails
    branches = [llm.open("1+2\n") for _ in range(2)]
    other = llm.queue_append(branches[:1], [[5, 6]])
    with pytest.raises(RuntimeError, match="no launch"):
        llm.next_logits(branches[1:])
    assert isinstance(other.error, RuntimeError)
    executor.launch = launch
    assert torch.isfinite(llm.next_logits(branches)).all()
    for branch in branches:
        branch.close()
    assert_idle(llm.runner)
