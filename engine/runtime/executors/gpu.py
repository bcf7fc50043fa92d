"""A model on a GPU. The host waits for it once per tick of a policy, and for a verifier when its scores are read.

A tick in which branches are only decoded is several forwards, which the host starts without waiting in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.model import Decoder, LMHead, ScoreHead
from engine.runtime.decode_table import Active, Ready, Rows
from engine.runtime.executors.cpu import Drawn, planned
from engine.runtime.executors.cuda_graph import Graph
from engine.runtime.executors.gpu_step import MAX_AHEAD, DecodeStep, padded_size
from engine.runtime.executors.transfers import Fetch, Transfers
from engine.runtime.kv import KVPool
from engine.runtime.stops import StopRules
from ttc_kernels._native import Plan


class DeviceModel:
    """Does what HostModel does, through the ops of the decoder's placement.

    All of a model runs on a stream of its own, a policy's before a verifier's where both have work. Decoding runs in
    steps of padded size, which `make_graph` captures and replays (None: each is launched anew); what else is run,
    prompts and verifiers' steps, is launched op by op. On a CPU's tensors, as in the tests, there is no stream.
    """

    refills = False  # rows that end leave their places free until the host has seen it

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        lm_head: LMHead | None,
        score_head: ScoreHead | None,
        make_graph: Callable[[Callable[[], None]], Graph] | None = Graph,  # which is a GPU's alone
    ):
        self.decoder, self.pool, self.lm_head, self.score_head = decoder, pool, lm_head, score_head
        self.impl, device = decoder.placement.impl, decoder.placement.device
        self.transfers = Transfers(device)
        self.make_graph = None if make_graph is Graph and not self.transfers.is_gpu else make_graph
        self.stream: torch.cuda.Stream | None = None
        if self.transfers.is_gpu:
            self.stream = torch.cuda.Stream(device, priority=0 if lm_head is None else -1)
            torch.cuda.synchronize(device)  # weights and pool were written on another stream
        self._steps: dict[tuple[int, bool], DecodeStep] = {}

    @property
    def is_asynchronous(self) -> bool:
        """Whether a verifier's forward goes on while the host does something else."""
        return self.stream is not None

    def forward(self, plan: Plan, slots: np.ndarray) -> torch.Tensor:
        """Hidden states of all rows of a plan, which knows their tokens; -1 in `slots` stores no KV."""
        with self._on_stream():
            tokens, positions, slots = self.transfers.put(plan.tokens, plan.positions, slots)
            return self.decoder.forward(tokens, plan, positions, slots, self.pool.k, self.pool.v)

    def scores(self, hidden: torch.Tensor, where: Sequence[int]) -> Fetch:
        """The score head's values at rows of `hidden`."""
        with self._on_stream():
            if not len(where):
                return self.transfers.fetch(torch.empty(0, device=hidden.device))
            assert self.score_head is not None, "scores were asked of a model without a score head"
            (rows,) = self.transfers.put(np.array(where, np.int32))
            return self.transfers.fetch(self.score_head.score(hidden, rows, self.impl))

    def draw(
        self,
        hidden: torch.Tensor,
        where: np.ndarray,  # (m,) int64: rows of `hidden` whose logits are needed
        pick: np.ndarray,  # (n,) int64: for each token to be drawn, an index into `where`
        sampling: Sequence[torch.Tensor],  # (n,) each, on the CPU: the arguments of `sample` after the logits
        marks: np.ndarray | None,  # (vocabulary + 1) bool: tokens at which the trunk head is read
        needs_logits: bool,
    ) -> tuple[Drawn | None, torch.Tensor | None]:
        """One token for each of n rows, and where they are needed the logits, (m, vocabulary) float32 on the CPU."""
        with self._on_stream():
            rows, source, *there = self.transfers.put(where, where[pick], *(x.numpy() for x in sampling))
            logits = self.lm_head.logits(hidden, rows).cpu() if needs_logits else None
            if not len(pick):
                return None, logits
            tokens, logprobs = self.lm_head.draw(hidden[source], there, is_filtered(sampling))
            scores = logprobs[:0]
            if self.score_head is not None:
                scores = self.score_head.score(hidden, source.int(), self.impl)
            fetched = self.transfers.fetch(tokens, logprobs, scores)
        tokens, logprobs, scores = (array[None] for array in fetched.arrays())
        return as_drawn(tokens, logprobs, scores, np.ones(len(pick), np.int32), marks), logits

    def decode(self, rows: Rows, stops: StopRules, max_forwards: int, wait_for: Ready) -> Drawn:
        """Forwards of the decoding rows alone, whose pending tokens are in the tree; may reorder the rows.

        Up to `max_forwards`, MAX_AHEAD at most: the host does not see what is drawn before all of them have run. What
        rows drew behind their ends is taken back.
        """
        plan, active = planned(self.pool, rows)
        num, num_forwards = len(active.slots), 1
        key = padded_size(num), is_filtered(active.sampling)
        in_context = self.decoder.config.context - int(active.positions.max()) + 1
        most = min(max_forwards, MAX_AHEAD, active.room, int(active.left.max()), in_context)
        with self._on_stream():
            if key not in self._steps:
                self._steps[key] = DecodeStep(self, *key)
            step = self._steps[key]
            step.mark(stops.is_scored)
            step.run(plan, active.sampling)
            while num_forwards < most and (plan := self._plan_ahead(active)) is not None:
                step.run(plan, drawn_later(active.sampling, num_forwards), num_forwards)
                num_forwards += 1
            fetched = self.transfers.fetch(step.all_drawn[:num_forwards])
        (drawn,) = fetched.arrays()
        tokens, (logprobs, scores) = drawn[:, 0, :num], (drawn[:, i, :num].view(np.float32) for i in (1, 2))
        counts = counts_until_end(stops.ends(active.rules, tokens), active.left)
        if num_forwards > 1:
            self._take_back(active, tokens, counts)
        return as_drawn(tokens, logprobs, scores, counts, stops.is_scored)

    def _plan_ahead(self, active: Active) -> Plan | None:
        """The plan of one token more for each row, not known yet; None where no free block is left for one of them:
        cached prefixes are not given up for tokens that may be taken back."""
        tree = self.pool.tree
        if tree.blocks_needed(active.handles, active.ones) > tree.num_free_blocks:
            return None
        tree.extend(active.handles, active.ones, np.zeros_like(active.handles))
        plan = tree.plan(active.handles, active.ones)
        assert np.array_equal(plan.order, active.indices), "branches that only grow stay in order"
        return plan

    def _take_back(self, active: Active, tokens: np.ndarray, counts: np.ndarray) -> None:
        """Has the tree hold what each row drew, but for its last token, in the place of what it was extended by."""
        num_forwards = len(tokens)
        is_kept = np.arange(num_forwards) < counts[:, None] - 1
        known = np.ascontiguousarray(tokens.T)[is_kept]
        self.pool.tree.rewrite(active.handles, num_forwards - counts, counts - 1, known)

    def _on_stream(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def as_drawn(
    tokens: np.ndarray, logprobs: np.ndarray, scores: np.ndarray, counts: np.ndarray, marks: np.ndarray | None
) -> Drawn:
    """What forwards have drawn, (forwards, rows) each, of which `counts` (rows,) are a row's; the trunk head was read
    at least where `marks` says."""
    if marks is None:
        return Drawn(tokens, logprobs, counts, np.zeros(0, np.int64), [])
    forward, row = np.nonzero(marks[tokens] & (np.arange(len(tokens))[:, None] < counts))
    return Drawn(tokens, logprobs, counts, row, scores[forward, row].tolist())


def counts_until_end(is_end: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(rows,) int32: tokens of each row up to the first at which it ends, or its limit; is_end is (forwards, rows)."""
    num_forwards = len(is_end)
    first = np.where(is_end.any(0), is_end.argmax(0) + 1, num_forwards)
    return np.minimum(first, left).astype(np.int32)


def drawn_later(sampling: Sequence[torch.Tensor], num_tokens: int) -> tuple[torch.Tensor, ...]:
    """How a row's token is drawn so many tokens later: its position is another one."""
    keys, positions, *others = sampling
    return keys, positions + num_tokens, *others


def is_filtered(sampling: Sequence[torch.Tensor]) -> bool:
    """Whether any row has top-k, top-p or min-p, in the arguments of `sample` after the logits."""
    top_k, top_p, min_p = (x.numpy() for x in sampling[3:])
    return bool(top_k.any() or min_p.any() or (top_p < 1).any())
