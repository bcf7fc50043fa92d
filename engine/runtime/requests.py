"""What a search asks of a model: sample onto branches, or feed tokens and read scores or logits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from engine.runtime.segments import Segment
from engine.types import Sampling

if TYPE_CHECKING:
    from engine.runtime.llm import Branch
    from engine.runtime.runner import Runner


@dataclass(eq=False)
class Request:
    """An awaitable piece of work; the driver resumes the waiting search once `num_left` is zero."""

    runner: Runner
    num_left: int = 0
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.num_left == 0 or self.error is not None

    def __await__(self) -> Generator[Request, None, None]:
        while not self.is_done:
            yield self
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens that an extension drew, before they are split into steps."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str  # "step", "eos", "boxed", "length" or "error"
    trunk_scores: tuple[float, ...]  # one per sampled delimiter or end of text, if a trunk head is loaded


@dataclass(eq=False, slots=True)
class SampleJob:
    """One branch of a SampleRequest: from its segment's logits until a stop token or the limit."""

    request: SampleRequest
    index: int
    branch: Branch
    key: int  # 64-bit random stream, as a signed number
    max_tokens: int
    priority: float
    age: int
    # The segment whose last logits the next token is drawn from: the branch's own, and after a
    # suspension the half-made one, which then goes on in place.
    source: Segment
    partial: Segment | None = None  # what is being sampled; None until the source has been fed
    row: int = -1  # in the decode table, while it has one
    logprobs: list[float] = field(default_factory=list)
    trunk_scores: list[float] = field(default_factory=list)


@dataclass(eq=False)
class SampleRequest(Request):
    """Samples onto branches; `results[i]` belongs to `branches[i]`."""

    branches: Sequence[Branch] = ()
    sampling: Sampling = field(default_factory=Sampling)
    stop_rule: int = 0  # index into the runner's stop rules
    # Of a branch and the tokens it has drawn, the last of them a stop token: how it finishes, None to go on.
    confirm: Callable[[Branch, list[int]], str | None] | None = None
    purpose: str = "generated"
    results: list[Sampled | None] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class FeedJob:
    """A segment to be fed whole; `score_at` are absolute positions whose rows go through the score head."""

    request: FeedRequest
    index: int
    branch: Branch
    segment: Segment
    score_at: Sequence[int] = ()
    steps: Sequence[Segment] = ()  # or the segments whose own scores are wanted, the last of them `segment`


@dataclass(eq=False)
class FeedRequest(Request):
    """Feeds segments; reads scores at positions, and the logits of the last token if asked."""

    wants_logits: bool = False
    scores: list[list[float]] = field(default_factory=list)
    logits: list[torch.Tensor | None] = field(default_factory=list)  # (vocabulary,) float32 each
