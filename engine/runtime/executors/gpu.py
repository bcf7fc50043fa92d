"""A model on a GPU.

The host starts forwards and reads what they have drawn later: a policy's when the next one has been started, a
verifier's when its scores are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.runtime.executors.base import Drawn, Forward, ModelParts, Read, given_logprobs, marked_tokens, with_states
from engine.runtime.executors.cuda_graph import Graph
from engine.runtime.executors.gpu_step import Inputs, Outputs, Step, StepKind, compute, padded_size
from engine.runtime.executors.transfers import Fetch, Transfers

MAX_MIXED = (
    256  # queries of a forward with prompts or fed tokens that runs as a step; longer ones are launched op by op
)


@dataclass
class Launched:
    """A `Pending` on a GPU."""

    fetch: Fetch  # what was drawn, (3, n), if n > 0; scores, (m,), if m > 0; logits, if asked for; (2, g), if g > 0
    forward: Forward
    marks: np.ndarray | None

    @property
    def is_there(self) -> bool:
        return self.fetch.is_there

    def read(self) -> Read:
        """Waits until the forward has run."""
        arrays, forward = iter(self.fetch.arrays()), self.forward
        drawn = self._drawn(next(arrays)) if forward.num_drawn else None
        scores = next(arrays).tolist() if len(forward.scored) else []
        logits = torch.from_numpy(next(arrays)) if forward.wants_logits else None
        return Read(drawn, scores, logits, next(arrays) if forward.given else None)

    def _drawn(self, rows: np.ndarray) -> Drawn:
        tokens, logprobs, scores = rows[:1], rows[1:2].view(np.float32), rows[2:].view(np.float32)
        counts = np.ones(rows.shape[1], np.int32)
        row, index = scored = marked_tokens(self.marks, tokens, counts)
        return Drawn(tokens, logprobs, counts, scored, scores[index, row].tolist() if len(row) else [])


class GPUExecutor:
    """An `Executor` through the ops of the decoder's placement.

    All of a model runs on a stream of its own; a policy's stream has priority over a verifier's. What only decodes, and
    whatever else has at most MAX_MIXED queries, runs in steps of padded size, which `make_graph` captures and replays
    (None: each is launched anew). Longer forwards, and those whose logits are asked for, are launched op by op. On a
    CPU's tensors, as in the tests, there is no stream.
    """

    decodes = False
    refills = False  # the host learns that a row has ended while the next forward runs; its place stays empty in that

    def __init__(
        self,
        parts: ModelParts,
        make_graph: Callable[[Callable[[], None]], Graph] | None = Graph,  # Graph works on a GPU alone
    ):
        self.parts, self.pool = parts, parts.pool
        placement = parts.decoder.placement
        self.ranks, device = placement.ranks, placement.device
        self.transfers = Transfers(device)
        is_captured = self.transfers.is_gpu and self.ranks.size == 1  # what ranks exchange is not
        self.make_graph = None if make_graph is Graph and not is_captured else make_graph
        self.stream: torch.cuda.Stream | None = None
        if self.transfers.is_gpu:
            self.stream = torch.cuda.Stream(device, priority=0 if parts.lm_head is None else -1)
            torch.cuda.synchronize(device)  # weights and pool were written on another stream
        with self._on_stream():  # its memory is used again in the order of this stream
            self.out = Outputs.of(parts, padded_size(MAX_MIXED) if parts.lm_head is not None else 0)
        self._marks: np.ndarray | None = None  # those in `out`
        self._steps: dict[StepKind, Step] = {}

    @property
    def is_asynchronous(self) -> bool:
        """Implements `Executor.is_asynchronous`.

        Ranks are not: when results are there differs between them, and all of them must do the same.
        """
        return self.ranks.size == 1

    def launch(self, forward: Forward, marks: np.ndarray | None) -> Launched:
        """Implements `Executor.launch`."""
        num = max(len(forward.plan.tokens), forward.num_drawn, len(forward.scored))
        with self._on_stream():
            self._prepare(padded_size(num) if forward.num_drawn else 0, marks)
            chain = forward.chain if forward.chain is not None and forward.chain.max() >= 0 else None
            if forward.wants_logits or forward.given or (num > MAX_MIXED and forward.where is not None):
                results = self._launch_once(forward, chain)
            else:
                step = self._step(StepKind(padded_size(num), forward.is_filtered, forward.where is not None))
                results = [step.run(forward, chain)]
            if len(forward.scored):
                results[0] = results[0][: len(forward.scored)]
            else:
                del results[0]
            if forward.num_drawn:
                results.insert(0, self.out.drawn[:, : forward.num_drawn])
            return Launched(self.transfers.fetch(*results), forward, marks)

    def _prepare(self, num_rows: int, marks: np.ndarray | None) -> None:
        """Makes room for the rows' results, and sets the tokens at which the trunk head is read."""
        if num_rows > self.out.drawn.shape[1]:
            before, self.out = self.out, Outputs.of(self.parts, num_rows)
            self.out.next_tokens[: len(before.next_tokens)] = before.next_tokens
            self._steps, self._marks = {}, None  # they write to what has been replaced
        if marks is not self._marks:
            self._marks = marks
            self.out.marks.copy_(torch.from_numpy(np.zeros(len(self.out.marks), bool) if marks is None else marks))

    def _step(self, kind: StepKind) -> Step:
        if kind not in self._steps:
            self._steps[kind] = Step(self.parts, self.transfers, self.make_graph, kind, self.out)
        return self._steps[kind]

    def _launch_once(self, forward: Forward, chain: np.ndarray | None) -> list[torch.Tensor | None]:
        """Runs a forward in tensors of its own size; returns its scores, and what is read of its logits."""
        plan, num_drawn = forward.plan, forward.num_drawn
        chains = [] if chain is None else [np.maximum(chain, 0), (chain >= 0).astype(np.int32)]
        where = np.zeros(0, np.int32) if forward.where is None else forward.where.astype(np.int32)
        source = [where[forward.pick]] if num_drawn else []
        given = np.ascontiguousarray(np.array(forward.given, np.int32).reshape(-1, 2).T)
        columns = [plan.tokens, plan.positions, forward.slots, np.array(forward.scored, np.int32), where, *given]
        there = iter(self.transfers.put(*columns, *chains, *source, *forward.sampling))
        tokens, positions, slots, scored, where, read_at, read = (next(there) for _ in columns)
        inputs = Inputs(
            tokens,
            positions,
            slots,
            chain=next(there) if chains else None,
            is_chained=next(there).bool() if chains else None,
            scored=scored if len(scored) else None,
            source=next(there) if source else None,
            sampling=tuple(there),
            is_filtered=forward.is_filtered,
        )
        hidden, scores = compute(self.parts, inputs, plan, self.out)
        results = [scores]
        if forward.wants_logits:
            logits = self.parts.lm_head.logits(hidden, where.long())
            results.append(with_states(logits, hidden, where.long()))
        if forward.given:
            results.append(given_logprobs(self.parts.lm_head, hidden, read_at.long(), read.long()))
        return results

    def _on_stream(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
