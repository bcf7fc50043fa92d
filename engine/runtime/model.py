"""What a runner asks of its model: forwards over a plan, tokens drawn, scores. Here on a CPU, in native code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.model import Decoder, LMHead, ScoreHead
from engine.runtime.kv import KVPool
from engine.runtime.rows import Active, Rows
from engine.runtime.transfers import Fetch
from ttc_kernels._native import Plan
from ttc_kernels.decoder import DecodeLoop
from ttc_kernels.sample import sample


@dataclass(frozen=True)
class Drawn:
    """Tokens of n rows, drawn in one forward or several."""

    tokens: np.ndarray  # (forwards, n) int32
    logprobs: np.ndarray  # (forwards, n) float32
    read_scores: Callable[[np.ndarray], Sequence[float]]  # the trunk head's of the last forward, at some of the n rows


class HostModel:
    """A model on a CPU. Everything is there when a call returns."""

    is_asynchronous = False

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
        needs_logits: bool,
    ) -> tuple[Drawn | None, torch.Tensor | None]:
        """One token for each of n rows, and where they are needed the logits, (m, vocabulary) float32 on the CPU."""
        logits = self.lm_head.logits(hidden, torch.from_numpy(where))
        if not len(pick):
            return None, logits
        return self._sample(logits[torch.from_numpy(pick)], sampling, hidden, where[pick]), logits

    def decode(self, rows: Rows, pauses: np.ndarray, max_forwards: int) -> Drawn:
        """Forwards of the decoding rows alone, whose pending tokens are in the tree.

        Up to `max_forwards`, until one after which `pauses[rule, token]` says that something is to be done. May put
        the rows into another order.
        """
        active = rows.active()
        if self.loop is None:
            return self._decode_once(rows)
        decoded = self.loop.run(
            self.pool.tree,
            self.pool.k,
            self.pool.v,
            active.handles,
            active.sampling,
            active.rules,
            pauses,
            min(max_forwards, active.num_left),
        )
        return Drawn(decoded.tokens, decoded.logprobs, self._score_reader(decoded.hidden, decoded.rows))

    def _decode_once(self, rows: Rows) -> Drawn:
        plan, active = planned(self.pool, rows)
        hidden = self.forward(plan, plan.slots)
        return self._sample(self.lm_head.logits(hidden, active.where), active.sampling, hidden, active.indices)

    def _sample(
        self, logits: torch.Tensor, sampling: Sequence[torch.Tensor], hidden: torch.Tensor, where: np.ndarray
    ) -> Drawn:
        tokens, logprobs = (x.numpy()[None] for x in sample(logits, *sampling))
        return Drawn(tokens, logprobs, self._score_reader(hidden, where))

    def _score_reader(self, hidden: torch.Tensor, where: np.ndarray) -> Callable[[np.ndarray], Sequence[float]]:
        """Reads scores at some of the rows `where` of `hidden`: only those that are asked for go through the head."""
        return lambda marked: self.scores(hidden, where[marked].tolist()).arrays()[0].tolist()


def planned(pool: KVPool, rows: Rows) -> tuple[Plan, Active]:
    """(plan, active) of the decoding rows, in the plan's order, so that nothing is gathered."""
    active = rows.active()
    plan = pool.tree.plan(active.handles, active.ones)
    if np.count_nonzero(plan.order != active.indices):
        active = rows.reorder(plan.order)
    return plan, active
