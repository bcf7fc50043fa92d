"""A model on a GPU. The host waits for it once per tick of a policy, and for a verifier when its scores are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.model import Decoder, LMHead, ScoreHead
from engine.runtime.decode_step import DecodeStep, padded_size
from engine.runtime.graph import Graph
from engine.runtime.kv import KVPool
from engine.runtime.model import Drawn, marked_rows, planned
from engine.runtime.rows import Ready, Rows
from engine.runtime.stops import StopRules
from engine.runtime.transfers import Fetch, Transfers
from ttc_kernels._native import Plan


class DeviceModel:
    """Does what HostModel does, through the ops of the decoder's placement.

    All of a model runs on a stream of its own, a policy's before a verifier's where both have work. Decoding runs in
    steps of padded size, which `make_graph` captures and replays (None: each is launched anew); what else is run,
    prompts and verifiers' steps, is launched op by op. On a CPU's tensors, as in the tests, there is no stream.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        lm_head: LMHead | None,
        score_head: ScoreHead | None,
        make_graph: Callable[[Callable[[], None]], Graph] | None = Graph,  # on a GPU, where attention allows it
    ):
        self.decoder, self.pool, self.lm_head, self.score_head = decoder, pool, lm_head, score_head
        self.impl, device = decoder.placement.impl, decoder.placement.device
        self.transfers = Transfers(device)
        self.make_graph = make_graph
        self.stream: torch.cuda.Stream | None = None
        if self.transfers.is_gpu:
            self.stream = torch.cuda.Stream(device, priority=0 if lm_head is None else -1)
            torch.cuda.synchronize(device)  # weights and pool were written on another stream
        self._steps: dict[tuple[int, bool], DecodeStep] = {}

    refills = False  # rows that end leave their places free until the host has seen it

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
        return as_drawn(*fetched.arrays(), marks), logits

    def decode(self, rows: Rows, stops: StopRules, max_forwards: int, wait_for: Ready) -> Drawn:
        """One forward of the decoding rows alone, whose pending tokens are in the tree; may reorder the rows.

        More than one, as on a CPU, would need the drawn tokens on the host in between.
        """
        plan, active = planned(self.pool, rows)
        key = padded_size(len(active.slots)), is_filtered(active.sampling)
        with self._on_stream():
            if key not in self._steps:
                self._steps[key] = DecodeStep(self, *key)
            fetched = self.transfers.fetch(self._steps[key].run(plan, active.sampling))
        (drawn,) = fetched.arrays()
        num = len(active.slots)
        return as_drawn(drawn[0, :num], *drawn[1:, :num].view(np.float32), stops.is_scored)

    def _on_stream(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def as_drawn(tokens: np.ndarray, logprobs: np.ndarray, scores: np.ndarray, marks: np.ndarray | None) -> Drawn:
    """What a forward has drawn; the trunk head was read at all rows."""
    scored = marked_rows(marks, tokens)
    counts = np.ones(len(tokens), np.int32)
    return Drawn(tokens[None], logprobs[None], counts, scored, scores[scored].tolist())


def is_filtered(sampling: Sequence[torch.Tensor]) -> bool:
    """Whether any row has top-k, top-p or min-p, in the arguments of `sample` after the logits."""
    top_k, top_p, min_p = (x.numpy() for x in sampling[3:])
    return bool(top_k.any() or min_p.any() or (top_p < 1).any())
