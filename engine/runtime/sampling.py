"""Plain samples of a policy, without a search: whole texts that end at stop texts, told as they grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from engine.accounting import Ledger
from engine.runtime.branch import Branch
from engine.runtime.llm import LLM
from engine.runtime.requests import GenerateRequest, StopCondition
from engine.runtime.vocabulary import completing
from engine.types import Sampling


@dataclass(frozen=True)
class SampleOptions:
    """How texts are sampled."""

    keys: Sequence[int]  # 64-bit random stream of each text
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()  # texts before which one ends


@dataclass(frozen=True)
class Sample:
    """A sampled text, or as much of one as there is; the tokens of a stop text and of the end are left out."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # at the temperature, before top-k, top-p and min-p; one for each token
    finish: str | None  # "eos", "stop", "length" or "error"; None where it goes on
    num_sampled: int  # tokens, those that are left out included


Tell = Callable[[int, Sample], None]  # the index of a text, and the whole of it until now


async def sample_texts(
    llm: LLM,
    prompt_ids: Sequence[int],
    options: SampleOptions,
    *,
    ledger: Ledger,
    watch: Callable[[GenerateRequest], None] | None = None,
) -> list[Sample]:
    """The texts in order; `watch` is given the request that generates them. Raises UserError as `LLM.open` does."""
    with ExitStack() as stack:
        root = llm.open(prompt_ids, ledger=ledger)
        stack.callback(root.close)
        branches = root.fork(len(options.keys))
        for branch in branches:
            stack.callback(branch.close)
        request = llm.queue_generate(
            branches,
            options.keys,
            max_tokens=options.max_tokens,
            sampling=options.sampling,
            stop=stack.enter_context(_stopping(llm, options.stop)),
        )
        if watch is not None:
            watch(request)
        await request
        return [as_sample(llm, each.token_ids, each.logprobs, options.stop, each.finish) for each in request.results]


def growing_samples(llm: LLM, request: GenerateRequest, stop: Sequence[str]) -> Iterator[tuple[int, Sample]]:
    """What the texts of a request are so far, in the thread that generates them; what may still change is left out."""
    for index, (token_ids, logprobs) in enumerate(llm.runner.generated(request)):
        yield index, as_sample(llm, token_ids, logprobs, stop, None)


def as_sample(
    llm: LLM, token_ids: Sequence[int], logprobs: Sequence[float], stop: Sequence[str], finish: str | None
) -> Sample:
    """A text from its tokens; `finish` is how their generation ended, None while it goes on."""
    text = llm.decode(token_ids)
    found = [place for place in map(text.find, stop) if place >= 0]
    if found:
        text, finish = text[: min(found)], "stop" if finish is not None else None
    elif finish is None:
        text = text[: _certain(text, stop)]
    num_shown = len(token_ids)
    while num_shown and len(llm.decode(token_ids[: num_shown - 1])) >= len(text):
        num_shown -= 1
    finish = "eos" if finish == "boxed" else finish
    return Sample(text, tuple(token_ids[:num_shown]), tuple(logprobs[:num_shown]), finish, len(token_ids))


def _certain(text: str, stop: Sequence[str]) -> int:
    """The length of what further tokens cannot change: no part of a character, and no start of a stop text."""
    end = len(text.rstrip("\ufffd"))
    starts = [length for each in stop for length in range(1, len(each)) if text.endswith(each[:length], 0, end)]
    return end - max(starts, default=0)


@contextmanager
def _stopping(llm: LLM, stop: Sequence[str]) -> Iterator[StopCondition]:
    """A stop rule for as long as a request needs it: what users name is not kept."""
    stops = llm.runner.stops
    with llm.in_use:
        rule = stops.add(completing(llm.vocabulary.token_texts, stop))

    def finish(_branch: Branch, tokens: list[int]) -> str | None:
        text = llm.decode(tokens)
        return "step" if any(each in text for each in stop) else None

    try:
        yield StopCondition(rule, finish if stop else None)
    finally:
        with llm.in_use.after_others():
            stops.remove(rule)
