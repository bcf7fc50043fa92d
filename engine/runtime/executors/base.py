"""What the runner needs of whatever runs its model: forwards over a plan, tokens drawn, scores read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.model import Decoder, LMHead, ScoreHead
from engine.runtime.decode_table import ActiveRows, DecodeTable, ReturnRule
from engine.runtime.kv import KVPool
from engine.runtime.stops import StopRules
from ttc_kernels._native import Plan

_MAX_LOGITS = 1 << 24  # float32 numbers


@dataclass
class ModelParts:
    """A model and the KV pool that its forwards write. A policy has an LM head, a verifier has none."""

    decoder: Decoder
    pool: KVPool
    lm_head: LMHead | None = None
    score_head: ScoreHead | None = None  # a verifier's head, or one on the policy's trunk


@dataclass(frozen=True)
class Drawn:
    """Tokens of n rows, drawn in one forward or several, and what the trunk head read at m of them."""

    tokens: np.ndarray  # (forwards, n) int32
    logprobs: np.ndarray  # (forwards, n) float32
    counts: np.ndarray  # (n,) int32: the first counts[i] tokens of column i are row i's
    scored: tuple[np.ndarray, np.ndarray]  # (m,) int64 each: row i and token j of those it drew, by row and token
    scores: Sequence[float]  # (m,): what the trunk head read at token j of row i


@dataclass(frozen=True)
class Forward:
    """A plan to be run, and what is to be read of its q queries: m are scored, n rows draw a token each."""

    plan: Plan
    slots: np.ndarray  # (q,) int32: where each query's KV is stored; -1 stores none
    chain: np.ndarray | None = None  # (q,) int32: row of the launch before that drew the query's token; -1: the plan's
    scored: Sequence[int] = ()  # (m,) queries that the score head reads
    where: np.ndarray | None = None  # (l,) int64: queries whose logits are needed; None: all, in the plan's order
    pick: np.ndarray | None = None  # (n,) int64: for each row, the index in `where` of the query that it draws from
    sampling: Sequence[np.ndarray] = ()  # (n,) each: the arguments of `sample` after the logits
    is_filtered: bool = False  # whether any row has top-k, top-p or min-p
    wants_logits: bool = False  # whether a request has asked for logits
    given: Sequence[tuple[int, int]] = ()  # (g,) query and token: the token's log-probability after it is read

    @property
    def num_drawn(self) -> int:
        """n."""
        return len(self.sampling[0]) if self.sampling else 0


@dataclass(frozen=True)
class Read:
    """What has been read of a forward."""

    drawn: Drawn | None  # None if no row drew
    scores: Sequence[float]  # (m,)
    logits: torch.Tensor | None  # (l, vocabulary + hidden size) float32 on the CPU, if asked for: `with_states`
    given: np.ndarray | None = None  # (2, g) float32, if g > 0: `given_logprobs`


class Pending(Protocol):
    """What is read of a forward that has been started."""

    @property
    def is_there(self) -> bool:
        """Whether `read` would not wait."""
        ...

    def read(self) -> Read: ...


class Executor(Protocol):
    """Runs a model on one kind of machine."""

    @property
    def decodes(self) -> bool:
        """Whether `decode` runs forwards of decoding rows alone; otherwise `launch` runs those too."""
        ...

    @property
    def refills(self) -> bool:
        """Whether `decode` lets rows that stand by take the places of those that end."""
        ...

    @property
    def is_asynchronous(self) -> bool:
        """Whether a forward goes on while the host does something else, so that the next may be launched beside it."""
        ...

    def launch(self, forward: Forward, marks: np.ndarray | None) -> Pending:
        """Starts a forward. `marks`, (vocabulary + 1,) bool, are the tokens at which the trunk head is read."""
        ...

    # Only where it `decodes`, which a GPU does not.
    def decode(self, table: DecodeTable, stops: StopRules, max_forwards: int, wait_for: ReturnRule) -> Drawn:
        """Up to `max_forwards` forwards of the decoding rows alone, whose pending tokens are in the tree.

        May return earlier, as `wait_for` allows, and may put the active rows into another order.
        """
        ...


def with_states(logits: torch.Tensor, hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The logits of the rows `where`, and behind them the hidden states that they were made from, in float32."""
    return torch.cat([logits, hidden.index_select(0, where).float()], dim=1)


def given_logprobs(head: LMHead, hidden: torch.Tensor, where: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(2, g) float32: the log-probabilities of tokens after the queries `where`, and 1 where none is likelier.

    `where` and `tokens` are (g,) int64, `hidden` is (queries, hidden size). So many logits are there at once as take
    64 MiB. Of equally likely tokens the first is the likeliest.
    """
    size = max(1, _MAX_LOGITS // head.vocab_size)
    read = torch.empty(2, len(where), device=hidden.device)
    for start in range(0, len(where), size):
        part = slice(start, start + size)
        logits, token = head.logits(hidden, where[part]), tokens[part]
        own = logits.gather(1, token[:, None])[:, 0]
        read[0, part] = own - logits.logsumexp(1)
        read[1, part] = (logits.argmax(1) == token).float()
    return read


def planned(pool: KVPool, table: DecodeTable) -> tuple[Plan, ActiveRows]:
    """The plan of the decoding rows, and these rows put into the plan's order, so that nothing is gathered."""
    active = table.active()
    plan = pool.tree.plan(active.handles, active.ones)
    if np.count_nonzero(plan.order != active.indices):
        active = table.reorder(plan.order)
    return plan, active


def marked_tokens(
    marks: np.ndarray | None,  # (vocabulary + 1,) bool: tokens at which the trunk head is read
    tokens: np.ndarray,  # (forwards, n) int32
    counts: np.ndarray,  # (n,) int32: the first counts[i] tokens are row i's
) -> tuple[np.ndarray, np.ndarray]:
    """(m,) int64 each: the row, and the index among the row's tokens, of each marked token; by row and index."""
    if marks is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.nonzero((marks[tokens] & (np.arange(len(tokens))[:, None] < counts)).T)
