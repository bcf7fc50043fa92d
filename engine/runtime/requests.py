"""Requests to a model: generate onto branches, or compute given tokens and read scores or logits.

A request has one job per branch. It is awaitable: a search awaits it, and the batcher goes on with the search once all
jobs have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from engine.runtime.branch import Branch
from engine.runtime.one_thread import OneThread
from engine.runtime.segments import Segment
from engine.types import Sampling


class RequestRunner(Protocol):
    """What works for requests, and is ticked by the batcher: the `Runner` of a model, or that of an endpoint."""

    in_use: OneThread  # held while it works
    num_ticks: int
    is_remote: bool  # others compute for it: a tick takes what they have sent, and may wait for it
    samples: bool  # else it only scores

    @property
    def has_work(self) -> bool:
        """Whether a request waits for its ticks."""
        ...

    @property
    def is_in_flight(self) -> bool:
        """Whether the last tick has started a forward that has not been read: on a GPU."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether that forward still runs: the next tick would wait for it."""
        ...

    @property
    def num_given_tokens(self) -> int:
        """Given tokens that wait to be computed."""
        ...

    @property
    def num_wanted_rows(self) -> int:
        """Branches that searches may generate at once, beyond which no further search is started."""
        ...

    @property
    def num_free_blocks(self) -> float:
        """KV blocks that nothing open holds."""
        ...

    def tick(self, max_forwards: int = 1) -> None:
        """Goes on with the requests, by more than one forward where nothing else has work."""
        ...


class ModelRunner(RequestRunner, Protocol):
    """What the requests to a model know of the `Runner` that works for them."""

    def cancel_generate(self, job: GenerateJob) -> None: ...

    def cancel_prefill(self, job: PrefillJob) -> None: ...

    def cut(self, request: GenerateRequest) -> None: ...


@dataclass(eq=False)
class Request:
    """An awaitable piece of work; the driver resumes the waiting search once `num_left` is zero."""

    runner: RequestRunner
    num_left: int = 0  # jobs that have not ended
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.num_left == 0 or self.error is not None

    def cut(self) -> None:
        """Ends what is sampled with what there is of it. By default nothing: it runs to its end."""

    def __await__(self) -> Generator[Request, None, None]:
        while not self.is_done:
            yield self
        if self.error is not None:
            raise self.error


# -- generating --------------------------------------------------------------------------------


@dataclass(slots=True)
class GeneratedTokens:
    """What one branch was extended by, before it is split into steps."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str  # "step", "eos", "boxed", "stop", "length" or "error"
    trunk_scores: Mapping[int, float]  # by index of the token: each delimiter and end of text, if there is a trunk head


@dataclass(frozen=True, slots=True)
class StopCondition:
    """Where an extension ends: at a token of `rule`, if `confirm` agrees.

    `confirm(branch, tokens)` is called with what has been generated, whose last token is one of the rule's. It returns
    how the extension finishes ("step", "boxed" or "stop"), or None to go on. Without it every token of the rule stops.
    """

    rule: int  # number of a rule in the runner's StopRules
    confirm: Callable[[Branch, list[int]], str | None] | None = None


@dataclass(eq=False, slots=True)
class GenerateJob:
    """One branch of a GenerateRequest: from the logits of its last token until a stop token or the limit."""

    request: GenerateRequest
    index: int  # of the branch in the request
    branch: Branch
    key: int  # 64-bit random stream, as a signed number
    max_tokens: int
    priority: float
    age: int
    # The next token is drawn from this segment's last logits. At first it is the branch's own segment; after a
    # suspension it is `partial`, which then continues.
    source: Segment
    partial: Segment | None = None  # what is being generated; None until the source has been computed
    row: int = -1  # in the decode table, while it has one
    logprobs: list[float] = field(default_factory=list)
    trunk_scores: dict[int, float] = field(default_factory=dict)  # by index of the token at which each was read

    def cancel(self) -> None:
        self.request.runner.cancel_generate(self)


@dataclass(eq=False)
class GenerateRequest(Request):
    """Generates onto branches; `results[i]` belongs to `branches[i]`."""

    runner: ModelRunner
    branches: Sequence[Branch] = ()
    sampling: Sampling = field(default_factory=Sampling)
    stop: StopCondition = StopCondition(0)
    purpose: str = "generated"
    results: list[GeneratedTokens | None] = field(default_factory=list)

    def cut(self) -> None:
        if not self.is_done:
            self.runner.cut(self)


# -- given tokens ------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class PrefillJob:
    """A segment that is to be computed whole, and the scores that are wanted: at positions, or of steps."""

    request: PrefillRequest
    index: int  # of the branch in the request
    branch: Branch
    segment: Segment
    score_at: Sequence[int] = ()  # positions in the branch whose hidden states go through the score head
    next_tokens: Sequence[int] = ()  # one after each token of `segment`: their log-probabilities are read
    steps: Sequence[Segment] = ()  # segments whose own scores are wanted, the last of them `segment`

    def cancel(self) -> None:
        self.request.runner.cancel_prefill(self)


class TokenLogprob(NamedTuple):
    """What the policy thinks of a given token."""

    logprob: float  # natural logarithm of its probability, at temperature 1
    is_likeliest: bool


@dataclass(eq=False)
class PrefillRequest(Request):
    """Computes segments; reads scores, and if `wants_logits` the last token's logits and hidden state."""

    runner: ModelRunner
    wants_logits: bool = False
    scores: list[list[float]] = field(default_factory=list)  # per branch, per position or step
    logits: list[torch.Tensor | None] = field(default_factory=list)  # (vocabulary + hidden size,) float32 each
    logprobs: list[list[TokenLogprob | None]] = field(default_factory=list)  # per branch, of each of `next_tokens`
