"""The values that searches take and return: plain data without tensors or models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.accounting.ledger import Ledger
from engine.counts import check_real, settle_count, shown
from engine.errors import UserError


class Rendered(str):
    """The text of a conversation, which the policy is given as it is: its chat template has been applied."""

    __slots__ = ()


@dataclass(frozen=True)
class Problem:
    """A problem to search; `id` seeds its random numbers and names its result row, `answer` is the gold answer."""

    id: str
    prompt: str
    answer: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    conversation: Rendered | None = None  # whose last message the prompt is; a verifier is told the prompt alone

    @property
    def asked(self) -> str:
        """What the policy is asked."""
        return self.prompt if self.conversation is None else self.conversation


_LEAST, _MOST, _MOST_TOKENS = 1.2e-38, 3.4e38, 2**31 - 1  # what kernels hold in a float and an int of 32 bits


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. Filters apply after the temperature; temperature 0 is greedy."""

    temperature: float = 1.0
    """0 is greedy; by default the engine's."""

    top_k: int = 0
    """Most likely tokens; 0 keeps all."""

    top_p: float = 1.0
    """Smallest set of tokens that holds this share."""

    min_p: float = 0.0
    """Least share of the likeliest token's."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            object.__setattr__(self, name, check_real(name, getattr(self, name)))
        settle_count(self, "top_k", 0, _MOST_TOKENS)
        if not self.temperature >= 0:
            raise UserError(f"temperature must be >= 0, got {self.temperature}")
        if self.temperature > _MOST:
            raise UserError(f"temperature must be at most {_MOST:g}, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be within (0, 1], got {self.top_p}")
        if self.top_p < _LEAST:
            raise UserError(f"top_p must be at least {_LEAST:g}, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be within [0, 1], got {self.min_p}")


def as_sampling(value: Sampling | None) -> Sampling:
    """The sampling that was asked for; None is the default. Raises UserError for anything else."""
    if value is None:
        return Sampling()
    if not isinstance(value, Sampling):
        raise UserError(f"sampling must be a Sampling, got {shown(value)}")
    return value


GREEDY = Sampling(temperature=0.0)
FINISHED = ("eos", "boxed", "stop")  # `finish` of a complete answer: end of text, a closed `\boxed{}`, a stop text


@dataclass(frozen=True)
class Step:
    """Sampled tokens up to a step delimiter, the end of text or a limit.

    `finish` is "step" (a delimiter: the answer continues), "eos", "boxed" or "stop" (the answer is complete: end
    of text, its `\\boxed{}` is closed, or a stop text, which `text` leaves out), "length" (cut off by a limit:
    neither the step nor the answer is complete) or "error" (the model returned NaN or Inf).
    """

    token_ids: tuple[int, ...]  # the delimiter or end-of-text token included
    text: str  # the delimiter included, special tokens not
    finish: str
    logprob: float = 0.0  # sum over the tokens
    trunk_score: float | None = None  # from a head on the policy's trunk, where one is loaded
    num_unknown: int = 0  # further tokens, whose ids are not known: an endpoint tells texts alone

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_unknown


Attempt = tuple[Step, ...]  # a whole answer that another one revises


@dataclass(frozen=True)
class Candidate:
    """An answer that a search produced."""

    text: str  # completion, without the prompt
    answer: str | None  # extracted; None if the completion states none or was cut off
    finish: str  # "eos", "boxed", "stop", "length" or "error"
    scores: tuple[float, ...]  # one per step
    agg_score: float  # aggregate of the scores, by which the search ranks and votes
    num_tokens: int
    address: tuple[int, ...]  # TreeNode.address of its last step


@dataclass
class TreeNode:
    """A step in a problem's search tree; the root is the prompt and has no step."""

    address: tuple[int, ...]  # index of the child taken at every level
    parent: int | None  # index into SearchTree.nodes
    step_text: str = ""
    score: float | None = None  # of this step, by the verifier (after lookahead, if any)
    agg_score: float | None = None  # of the path from the root to this node
    num_tokens: int = 0
    finish: str | None = None
    status: str = "pruned"  # "root", "kept" (selected, expanded further), "pruned", "final" (a candidate)
    token_ids: tuple[int, ...] = ()  # of this step


@dataclass
class SearchTree:
    """All steps that a search sampled, parents before children; nodes[0] is the root."""

    nodes: list[TreeNode]
    best: int | None = None  # index of the last node of the chosen answer's best candidate

    def path(self, index: int) -> list[int]:
        """Indices from the root to a node."""
        path = [index]
        while (parent := self.nodes[path[-1]].parent) is not None:
            path.append(parent)
        return path[::-1]


@dataclass(frozen=True)
class SearchResult:
    """The result of searching one problem."""

    problem: Problem
    answer: str | None
    candidates: tuple[Candidate, ...]
    tree: SearchTree
    ledger: Ledger
    strategy: str
    budget: int  # generations
    seed: int
    correct: bool | None = None  # None: no gold answer, or grading failed
    num_errors: int = 0  # candidates left out because a model or verifier returned NaN or Inf
    num_generations: int = 0  # spent; below the budget if the search stopped early
    plan: str | None = None  # the scheduler's decision for this problem, in words
    stopped_by: str | None = None  # "deadline": the search ended with what it had
    prompt_state: tuple[float, ...] = ()  # the policy's hidden state at the end of the prompt, where a probe reads it
