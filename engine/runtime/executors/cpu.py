"""A model on a CPU, in native code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.runtime.decode_table import DecodeTable, ReturnRule
from engine.runtime.executors.base import (
    Drawn,
    Forward,
    ModelParts,
    Read,
    given_logprobs,
    marked_tokens,
    planned,
    with_states,
)
from engine.runtime.stops import StopRules
from ttc_kernels._native import Plan
from ttc_kernels.decoder import DecodeBatch, DecodeLoop
from ttc_kernels.sample import sample


@dataclass(frozen=True)
class _Done:
    """A `Pending` that is there."""

    result: Read
    is_there = True

    def read(self) -> Read:
        return self.result


class CPUExecutor:
    """An `Executor` whose results are all there when a call returns."""

    decodes = True
    is_asynchronous = False

    def __init__(self, parts: ModelParts):
        self.parts, self.pool = parts, parts.pool
        # Only a model that is small enough to be packed decodes in the native loop; its sizes alone decide.
        packed, head = parts.decoder.packed, parts.lm_head
        is_packed = packed is not None and head is not None and head.packed is not None
        self.loop = DecodeLoop(packed, head.packed) if is_packed else None

    @property
    def refills(self) -> bool:
        """Whether `decode` lets rows that stand by take the places of those that end."""
        return self.loop is not None

    def launch(self, forward: Forward, marks: np.ndarray | None) -> _Done:
        """Implements `Executor.launch`."""
        hidden = self.forward(forward.plan, forward.slots)
        scores = self.scores(hidden, forward.scored)
        drawn, logits = None, None
        if forward.wants_logits or forward.num_drawn:
            logits = self.parts.lm_head.logits(hidden, torch.from_numpy(forward.where))
        if forward.num_drawn:
            picked, where = logits[torch.from_numpy(forward.pick)], forward.where[forward.pick]
            drawn = self._sample(picked, forward.sampling, hidden, where, marks)
        if forward.wants_logits:
            logits = with_states(logits, hidden, torch.from_numpy(forward.where))
        given = None
        if forward.given:
            where, tokens = torch.tensor(list(zip(*forward.given, strict=True)))
            given = given_logprobs(self.parts.lm_head, hidden, where, tokens).numpy()
        return _Done(Read(drawn, scores, logits, given))

    def forward(self, plan: Plan, slots: np.ndarray) -> torch.Tensor:
        """(queries, hidden size): hidden states of all queries of a plan."""
        tokens, positions, slots = map(torch.from_numpy, (plan.tokens, plan.positions, slots))
        return self.parts.decoder.forward(tokens, plan, positions, slots, self.pool.k, self.pool.v)

    def scores(self, hidden: torch.Tensor, where: Sequence[int]) -> list[float]:
        """(m,): the score head's values at the queries in `where`."""
        if not len(where):
            return []
        head = self.parts.score_head
        assert head is not None, "scores were asked of a model without a score head"
        return head.scores(hidden, where)

    def decode(self, table: DecodeTable, stops: StopRules, max_forwards: int, wait_for: ReturnRule) -> Drawn:
        """Implements `Executor.decode`."""
        active = table.active()
        if self.loop is None:
            return self._decode_once(table, stops.is_scored)
        batch = DecodeBatch(
            handles=active.handles,
            pending=active.pending,
            sampling=tuple(map(torch.from_numpy, active.sampling)),
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
        scored = marked_tokens(stops.is_scored, decoded.tokens, decoded.counts)
        order = np.argsort(decoded.marked, kind="stable")  # the loop lists its marked tokens by time
        assert np.array_equal(decoded.marked[order], scored[0]), "the loop has kept the state of every marked token"
        scores = self.scores(decoded.states, order.tolist())
        return Drawn(decoded.tokens, decoded.logprobs, decoded.counts, scored, scores)

    def _decode_once(self, table: DecodeTable, marks: np.ndarray | None) -> Drawn:
        """One forward, op by op."""
        plan, active = planned(self.pool, table)
        hidden = self.forward(plan, plan.slots)
        logits = self.parts.lm_head.logits(hidden, torch.from_numpy(active.indices))
        return self._sample(logits, active.sampling, hidden, active.indices, marks)

    def _sample(
        self,
        logits: torch.Tensor,  # (n, vocabulary) float32
        sampling: Sequence[np.ndarray],  # (n,) each
        hidden: torch.Tensor,  # (queries, hidden size)
        where: np.ndarray,  # (n,) int64: the query of each row
        marks: np.ndarray | None,  # (vocabulary + 1,) bool
    ) -> Drawn:
        tokens, logprobs = (x.numpy() for x in sample(logits, *map(torch.from_numpy, sampling)))
        counts = np.ones(len(tokens), np.int32)
        scored = marked_tokens(marks, tokens[None], counts)
        scores = self.scores(hidden, where[scored[0]].tolist())
        return Drawn(tokens[None], logprobs[None], counts, scored, scores)
