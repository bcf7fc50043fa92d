"""Log-probabilities of texts that are given and not sampled, as likelihood benchmarks ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby

import torch

from engine.accounting import Ledger
from engine.counts import check_count
from engine.errors import UserError
from engine.runtime.checks import as_ints
from engine.runtime.llm import LLM
from engine.runtime.requests import TokenLogprob

_MAX_TOKENS, _MAX_TEXTS = 16_384, 256  # of one request, which holds that much KV and a log-probability per token


def token_logprobs(
    llm: LLM, texts: Sequence[tuple[Sequence[int], int]], *, ledger: Ledger | None = None
) -> Iterator[tuple[int, list[TokenLogprob]]]:
    """Yields (index, log-probabilities) of texts, each in its own time; those of one beginning share its forwards.

    A text is its token ids and how many of them are the beginning: at least 1, and fewer than all. What is read are
    the log-probabilities of the others, (number of the others,), at temperature 1. The last token is not fed, so that a
    text may have one token more than the context holds. `ledger` pays for all of them, as prefilled.
    Raises UserError for other numbers, tokens outside the vocabulary, and longer texts.
    """
    ledger = Ledger() if ledger is None else ledger
    checked = [_checked(llm, ids, num_given) for ids, num_given in texts]
    order = sorted(range(len(checked)), key=lambda index: checked[index][0][: checked[index][1]])
    for batch in _batches(order, [len(ids) for ids, _ in checked]):
        yield from zip(batch, _read(llm, [checked[index] for index in batch], ledger), strict=True)


def _checked(llm: LLM, ids: Sequence[int], num_given: int) -> tuple[list[int], int]:
    ids = as_ints("token ids", ids)
    if len(ids) < 2:
        raise UserError(f"a text that is scored has at least 2 tokens, got {len(ids)}")
    if len(ids) > llm.config.context + 1:
        raise UserError(f"a text has {len(ids)} tokens, the context of {llm.folder} holds {llm.config.context}")
    return ids, check_count("the number of given tokens", num_given, 1, len(ids) - 1)


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Runs of an order that one request takes."""
    batch: list[int] = []
    num_tokens = 0
    for index in order:
        if batch and (num_tokens + lengths[index] > _MAX_TOKENS or len(batch) == _MAX_TEXTS):
            yield batch
            batch, num_tokens = [], 0
        batch.append(index)
        num_tokens += lengths[index]
    if batch:
        yield batch


def _read(llm: LLM, texts: Sequence[tuple[list[int], int]], ledger: Ledger) -> list[list[TokenLogprob]]:
    """The log-probabilities of texts, in one request.

    A token is read after one that is fed, and before which there is an open branch: so the first token after a
    beginning of one token, which no branch can be open before, is read from the logits after it, computed once.
    """
    firsts: dict[int, torch.Tensor] = {}  # by a beginning of one token: the log-probabilities after it
    with ExitStack() as stack:
        branches, runs = [], []
        for _, group in groupby(texts, key=lambda text: text[0][: max(1, text[1] - 1)]):
            same = list(group)
            ids, num_given = same[0]
            root = llm.open(ids[: max(1, num_given - 1)], ledger=ledger)
            stack.callback(root.close)
            if any(num_given == 1 for _, num_given in same) and ids[0] not in firsts:
                firsts[ids[0]] = llm.next_logits([root])[0].log_softmax(0)
            for branch, text in zip(root.fork(len(same)), same, strict=True):
                stack.callback(branch.close)
                branches.append(branch)
                runs.append(text[0][branch.num_tokens :])
        request = llm.queue_append(branches, [run[:-1] for run in runs], next_tokens=[run[1:] for run in runs])
        llm.run(request)
        return [
            [_of(firsts[ids[0]], ids[1]), *read] if num_given == 1 else read
            for (ids, num_given), read in zip(texts, request.logprobs, strict=True)
        ]


def _of(logprobs: torch.Tensor, token: int) -> TokenLogprob:
    """A token's, by those of all, (vocabulary,)."""
    return TokenLogprob(logprobs[token].item(), int(logprobs.argmax()) == token)
