"""Log-probabilities of given tokens are those of transformers, however the texts are batched."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.accounting import Ledger, forward_flops
from engine.errors import UserError
from engine.model.placement import Placement
from engine.runtime import LLM, given
from engine.runtime.given import token_logprobs
from tests.tiny import tiny_policy

CONTEXT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("given"), context=CONTEXT)


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(params=["native", "ops"])
def llm(request, folder):
    """On the CPU's own path, and through what drives a GPU."""
    device = "cpu" if request.param == "native" else Placement(torch.device("cpu"), "reference")
    llm = LLM.load(folder, device=device, num_blocks=256)
    yield llm
    llm.runner.tree.check_integrity()


def expected(reference, ids: list[int], num_given: int) -> list[tuple[float, bool]]:
    with torch.no_grad():
        logits = reference(torch.tensor([ids[:-1]])).logits[0]
    logprobs, best = logits.log_softmax(-1), logits.argmax(-1)
    places = range(num_given - 1, len(ids) - 1)
    return [(logprobs[i, ids[i + 1]].item(), best[i].item() == ids[i + 1]) for i in places]


def logprobs(found) -> list[float]:
    return [each.logprob for each in found]


def some_texts(reference) -> list[tuple[list[int], int]]:
    """Of one beginning and of others, a token alone before them, a full context, and what the model itself says."""
    draw = random.Random(3)
    one = [draw.randrange(3, 30) for _ in range(20)]
    texts = [([*one, *(draw.randrange(3, 30) for _ in range(n))], 20) for n in (1, 2, 7)]
    texts += [([draw.randrange(3, 30) for _ in range(n)], k) for n, k in ((2, 1), (30, 1), (9, 2), (CONTEXT + 1, 5))]
    texts += [(one[:9], 1), (one, 19)]
    said = reference.generate(torch.tensor([one]), max_new_tokens=6, do_sample=False, eos_token_id=[])[0].tolist()
    return [*texts, (said, 20)]


def test_equal_to_transformers(llm, reference, monkeypatch):
    texts = some_texts(reference)
    for most in (256, 2):  # all in one request, and two in each
        monkeypatch.setattr(given, "_MAX_TEXTS", most)
        found = dict(token_logprobs(llm, texts))
        assert sorted(found) == list(range(len(texts)))
        for index, (ids, num_given) in enumerate(texts):
            wanted = expected(reference, ids, num_given)
            assert [each.is_likeliest for each in found[index]] == [best for _, best in wanted]
            assert logprobs(found[index]) == pytest.approx([each for each, _ in wanted], abs=1e-5)
    assert all(each.is_likeliest for each in found[len(texts) - 1])


def test_few_logits_at_once_and_short_forwards(llm, reference, monkeypatch):
    monkeypatch.setattr("engine.runtime.executors.base._MAX_LOGITS", 100)  # two rows of this vocabulary
    monkeypatch.setattr(llm.runner, "max_chunk", 8)
    ids = some_texts(reference)[6][0]
    ((_, found),) = token_logprobs(llm, [(ids, 3)])
    assert logprobs(found) == pytest.approx([each for each, _ in expected(reference, ids, 3)], abs=1e-5)


def test_bill(folder):
    llm, ledger = LLM.load(folder, num_blocks=256), Ledger()
    list(token_logprobs(llm, [([5, 6, 7, 8, 9, 10], 4)], ledger=ledger))
    assert ledger.tokens["prefilled"] == 5  # the last token is not fed
    assert ledger.flops["prefilled"] == forward_flops(llm.runner.shape, 0, 5, 2)


def test_where_the_pool_is_small(folder, reference):
    llm = LLM.load(folder, num_blocks=10)  # of 16 tokens: not even three of these texts
    draw = random.Random(4)
    texts = [([draw.randrange(3, 30) for _ in range(50)], 10) for _ in range(6)]
    found = dict(token_logprobs(llm, texts))
    for index, (ids, num_given) in enumerate(texts):
        wanted = [each for each, _ in expected(reference, ids, num_given)]
        assert logprobs(found[index]) == pytest.approx(wanted, abs=1e-5)
    llm.runner.tree.check_integrity()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (([5], 1), "at least 2 tokens, got 1"),
        (([5, 6], 2), "must be at most 1, got 2"),
        (([5, 6], 0), "must be at least 1, got 0"),
        (([5] * (CONTEXT + 2), 1), f"{CONTEXT + 2} tokens, the context of .* holds {CONTEXT}"),
        (([5, 6, 999], 1), "got 999"),
    ],
)
def test_refused(folder, text, said):
    llm = LLM.load(folder, num_blocks=256)
    with pytest.raises(UserError, match=said):
        list(token_logprobs(llm, [text]))
    llm.runner.tree.check_integrity()
