"""What a runner asks of its model: forwards over a plan, tokens drawn, scores. Here on a CPU, in native code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.model import Decoder, LMHead, ScoreHead
from engine.runtime.decode_table import Active, Ready, Rows
from engine.runtime.executors.transfers import Fetch
from engine.runtime.kv import KVPool
from engine.runtime.stops import StopRules
from ttc_kernels._native import Plan
from ttc_kernels.decoder import DecodeBatch, DecodeLoop
from ttc_kernels.sample import sample


@dataclass(frozen=True)
class Drawn:
    """Tokens of n rows, drawn in one forward or several."""

    tokens: np.ndarray  # (forwards, n) int32
    logprobs: np.ndarray  # (forwards, n) float32
    counts: np.ndarray  # (n,) int32: how many of the forwards drew a token of each row, from the first on
    scored: np.ndarray  # (m,) int64: rows, in the order in which they drew a token at which the trunk head is read
    scores: Sequence[float]  # (m,) what it read


class HostModel:
    """A model on a CPU. Everything is there when a call returns."""

    is_asynchronous = False

    @property
    def refills(self) -> bool:
        """Whether `decode` lets rows that stand by take the places of those that end."""
        return self.loop is not None

    def __init__(self, decoder: Decoder, pool: KVPool, lm_head: LMHead | None, score_head: ScoreHead | None):
        self.decoder, self.pool, self.lm_head, self.score_head = decoder, pool, lm_head, score_head
        # As for the trunk and the head, the sizes of the model alone say who draws its tokens.
        is_packed = decoder.packed is not None and lm_head is not None and lm_head.packed is not None
        self.loop = DecodeLoop(decoder.packed, lm_head.packed) if is_packed else None

    def forward(self, plan: Plan, slots: np.ndarray) -> torch.Tensor:
        """Hidden states of all rows of a plan, which knows their tokens; -1 in `slots` stores no KV."""
        tokens, positions, slots = map(torch.from_numpy, (plan.tokens, plan.positions, slots))
        return self.decoder.forward(tokens, plan, positions, slots, self.pool.k, self.pool.v)

    def scores(self, hidden: torch.Tensor, where: Sequence[int]) -> Fetch:
        """The score head's values at rows of `hidden`."""
        if not len(where):
            return Fetch([torch.empty(0)], None)
        assert self.score_head is not None, "scores were asked of a model without a score head"
        return Fetch([self.score_head.score(hidden, torch.tensor(where, dtype=torch.int32))], None)

    def draw(
        self,
        hidden: torch.Tensor,
        where: np.ndarray,  # (m,) int64: rows of `hidden` whose logits are needed
        pick: np.ndarray,  # (n,) int64: for each token to be drawn, an index into `where`
        sampling: Sequence[torch.Tensor],  # (n,) each: the arguments of `sample` after the logits
        marks: np.ndarray | None,  # (vocabulary + 1) bool: tokens at which the trunk head is read
        needs_logits: bool,
    ) -> tuple[Drawn | None, torch.Tensor | None]:
        """One token for each of n rows, and where they are needed the logits, (m, vocabulary) float32 on the CPU."""
        logits = self.lm_head.logits(hidden, torch.from_numpy(where))
        if not len(pick):
            return None, logits
        return self._sample(logits[torch.from_numpy(pick)], sampling, hidden, where[pick], marks), logits

    def decode(self, rows: Rows, stops: StopRules, max_forwards: int, wait_for: Ready) -> Drawn:
        """Forwards of the decoding rows alone, whose pending tokens are in the tree.

        Up to `max_forwards`, until enough rows have ended. May put the rows into another order.
        """
        active = rows.active()
        if self.loop is None:
            return self._decode_once(rows, stops.is_scored)
        batch = DecodeBatch(
            handles=active.handles,
            pending=active.pending,
            sampling=active.sampling,
            limits=active.left,
            groups=wait_for.groups,
            rules=active.rules,
            table=stops.table,
            marks=stops.is_scored,
            max_forwards=min(max_forwards, active.room),
            min_ready=wait_for.num_rows,
            max_live=active.num_placed,
        )
        decoded = self.loop.run(self.pool.tree, self.pool.k, self.pool.v, batch)
        scores = self._scores(decoded.states, range(len(decoded.marked)))
        return Drawn(decoded.tokens, decoded.logprobs, decoded.counts, decoded.marked, scores)

    def _decode_once(self, rows: Rows, marks: np.ndarray | None) -> Drawn:
        plan, active = planned(self.pool, rows)
        hidden = self.forward(plan, plan.slots)
        logits = self.lm_head.logits(hidden, active.where)
        return self._sample(logits, active.sampling, hidden, active.indices, marks)

    def _sample(
        self,
        logits: torch.Tensor,
        sampling: Sequence[torch.Tensor],
        hidden: torch.Tensor,
        where: np.ndarray,
        marks: np.ndarray | None,
    ) -> Drawn:
        tokens, logprobs = (x.numpy() for x in sample(logits, *sampling))
        scored = marked_rows(marks, tokens)
        scores = self._scores(hidden, where[scored].tolist())
        return Drawn(tokens[None], logprobs[None], np.ones(len(tokens), np.int32), scored, scores)

    def _scores(self, hidden: torch.Tensor, where: Sequence[int]) -> list[float]:
        return self.scores(hidden, where).arrays()[0].tolist() if len(where) else []


def marked_rows(marks: np.ndarray | None, tokens: np.ndarray) -> np.ndarray:
    """(m,) int64: the rows whose token is one at which the trunk head is read; none where there are no marks."""
    return np.zeros(0, np.int64) if marks is None else np.flatnonzero(marks[tokens])


def planned(pool: KVPool, rows: Rows) -> tuple[Plan, Active]:
    """(plan, active) of the decoding rows, in the plan's order, so that nothing is gathered."""
    active = rows.active()
    plan = pool.tree.plan(active.handles, active.ones)
    if np.count_nonzero(plan.order != active.indices):
        active = rows.reorder(plan.order)
    return plan, active
