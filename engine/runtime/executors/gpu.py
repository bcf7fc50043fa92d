"""A model on a GPU.

The host waits for a policy once per tick, and for a verifier only when its scores are read. A tick that only decodes is
several forwards, which the host starts without waiting in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.runtime.decode_table import ActiveRows, DecodeTable, ReturnRule
from engine.runtime.executors.base import Drawn, ModelParts, marked_tokens, planned
from engine.runtime.executors.cuda_graph import Graph
from engine.runtime.executors.gpu_step import MAX_AHEAD, DecodeStep, padded_size
from engine.runtime.executors.transfers import Fetch, Transfers
from engine.runtime.stops import StopRules
from ttc_kernels._native import Plan


class GPUExecutor:
    """An `Executor` through the ops of the decoder's placement.

    All of a model runs on a stream of its own; a policy's stream has priority over a verifier's. Decoding runs in
    steps of padded size, which `make_graph` captures and replays (None: each is launched anew). Everything else,
    prompts and verifiers' steps, is launched op by op. On a CPU's tensors, as in the tests, there is no stream.
    """

    refills = False  # the host learns that a row has ended only after the forwards; its place stays empty until then

    def __init__(
        self,
        parts: ModelParts,
        make_graph: Callable[[Callable[[], None]], Graph] | None = Graph,  # Graph works on a GPU alone
    ):
        self.parts, self.pool = parts, parts.pool
        placement = parts.decoder.placement
        self.impl, self.ranks, device = placement.impl, placement.ranks, placement.device
        self.transfers = Transfers(device)
        is_captured = self.transfers.is_gpu and self.ranks.size == 1  # what ranks exchange is not
        self.make_graph = None if make_graph is Graph and not is_captured else make_graph
        self.stream: torch.cuda.Stream | None = None
        if self.transfers.is_gpu:
            self.stream = torch.cuda.Stream(device, priority=0 if parts.lm_head is None else -1)
            torch.cuda.synchronize(device)  # weights and pool were written on another stream
        self._steps: dict[tuple[int, bool], DecodeStep] = {}  # by padded size and whether any row filters its logits

    @property
    def is_asynchronous(self) -> bool:
        """Whether a verifier's forward goes on while the host does something else.

        Ranks do not let it: when its scores are there differs between them, and all of them must do the same.
        """
        return self.stream is not None and self.ranks.size == 1

    def forward(self, plan: Plan, slots: np.ndarray) -> torch.Tensor:
        """Implements `Executor.forward`."""
        with self._on_stream():
            tokens, positions, slots = self.transfers.put(plan.tokens, plan.positions, slots)
            return self.parts.decoder.forward(tokens, plan, positions, slots, self.pool.k, self.pool.v)

    def scores(self, hidden: torch.Tensor, where: Sequence[int]) -> Fetch:
        """Implements `Executor.scores`."""
        with self._on_stream():
            if not len(where):
                return self.transfers.fetch(torch.empty(0, device=hidden.device))
            head = self.parts.score_head
            assert head is not None, "scores were asked of a model without a score head"
            (queries,) = self.transfers.put(np.array(where, np.int32))
            return self.transfers.fetch(head.score(hidden, queries, self.impl))

    def draw(
        self,
        hidden: torch.Tensor,
        where: np.ndarray,
        pick: np.ndarray,
        sampling: Sequence[torch.Tensor],
        marks: np.ndarray | None,
        needs_logits: bool,
    ) -> tuple[Drawn | None, torch.Tensor | None]:
        """Implements `Executor.draw`."""
        lm_head, score_head = self.parts.lm_head, self.parts.score_head
        with self._on_stream():
            queries, source, *there = self.transfers.put(where, where[pick], *(x.numpy() for x in sampling))
            logits = lm_head.logits(hidden, queries).cpu() if needs_logits else None
            if not len(pick):
                return None, logits
            tokens, logprobs = lm_head.draw(hidden[source], there, is_filtered(sampling))
            scores = logprobs[:0]
            if score_head is not None:
                scores = score_head.score(hidden, source.int(), self.impl)
            fetched = self.transfers.fetch(tokens, logprobs, scores)
        tokens, logprobs, scores = (array[None] for array in fetched.arrays())
        return as_drawn(tokens, logprobs, scores, np.ones(len(pick), np.int32), marks), logits

    def decode(self, table: DecodeTable, stops: StopRules, max_forwards: int, wait_for: ReturnRule) -> Drawn:
        """Implements `Executor.decode`, with at most MAX_AHEAD forwards.

        The host sees what is drawn only after all of them have run. Tokens that a row drew past its end are taken back.
        """
        plan, active = planned(self.pool, table)
        num, num_forwards = len(active.rows), 1
        step_key = padded_size(num), is_filtered(active.sampling)
        in_context = self.parts.decoder.config.context - int(active.positions.max()) + 1
        most = min(max_forwards, MAX_AHEAD, active.room, int(active.left.max()), in_context)
        with self._on_stream():
            step = self._step(*step_key)
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

    def _step(self, size: int, is_filtered: bool) -> DecodeStep:
        key = size, is_filtered
        if key not in self._steps:
            self._steps[key] = DecodeStep(self.parts, self.transfers, self.make_graph, size, is_filtered)
        return self._steps[key]

    def _plan_ahead(self, active: ActiveRows) -> Plan | None:
        """The plan of one more token for each row, whose value is not known yet.

        None if there is no free block for it: cached prefixes are not given up for tokens that may be taken back.
        """
        tree = self.pool.tree
        if tree.blocks_needed(active.handles, active.ones) > tree.num_free_blocks:
            return None
        tree.extend(active.handles, active.ones, np.zeros_like(active.handles))
        plan = tree.plan(active.handles, active.ones)
        assert np.array_equal(plan.order, active.indices), "branches that only grow stay in order"
        return plan

    def _take_back(self, active: ActiveRows, tokens: np.ndarray, counts: np.ndarray) -> None:
        """Replaces the unknown tokens in the tree by those that each row has drawn, except its last one."""
        num_forwards = len(tokens)
        is_kept = np.arange(num_forwards) < counts[:, None] - 1
        known = np.ascontiguousarray(tokens.T)[is_kept]
        self.pool.tree.rewrite(active.handles, num_forwards - counts, counts - 1, known)

    def _on_stream(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def as_drawn(
    tokens: np.ndarray,  # (forwards, n) int32
    logprobs: np.ndarray,  # (forwards, n) float32
    scores: np.ndarray,  # (forwards, n) float32: read at least at marked tokens
    counts: np.ndarray,  # (n,) int32: the first counts[i] tokens are row i's
    marks: np.ndarray | None,  # (vocabulary + 1,) bool: tokens at which the trunk head is read
) -> Drawn:
    """The result of forwards, with the scores of the marked tokens."""
    row, index = scored = marked_tokens(marks, tokens, counts)
    return Drawn(tokens, logprobs, counts, scored, scores[index, row].tolist() if len(row) else [])


def counts_until_end(is_end: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(n,) int32: how many tokens each row takes: to the first that ends it, or to its limit.

    `is_end` is (forwards, n) bool; `left` is (n,) int32.
    """
    num_forwards = len(is_end)
    first = np.where(is_end.any(0), is_end.argmax(0) + 1, num_forwards)
    return np.minimum(first, left).astype(np.int32)


def drawn_later(sampling: Sequence[torch.Tensor], num_tokens: int) -> tuple[torch.Tensor, ...]:
    """The sampling arguments of the token that is drawn `num_tokens` later: only its position differs."""
    keys, positions, *others = sampling
    return keys, positions + num_tokens, *others


def is_filtered(sampling: Sequence[torch.Tensor]) -> bool:
    """Whether any row has top-k, top-p or min-p; `sampling` are the arguments of `sample` after the logits."""
    top_k, top_p, min_p = (x.numpy() for x in sampling[3:])
    return bool(top_k.any() or min_p.any() or (top_p < 1).any())
