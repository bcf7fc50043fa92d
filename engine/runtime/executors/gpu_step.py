"""One forward in buffers that keep their addresses, so that its CUDA graph is replayed while the tree changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from engine.runtime.executors.base import Forward, ModelParts
from engine.runtime.executors.cuda_graph import Graph
from engine.runtime.executors.transfers import Transfers
from ttc_kernels._native import Plan
from ttc_kernels.tree_attention import implementation
from ttc_kernels.tree_attention.work import AttentionWork

MIN_SIZE = 16  # queries
# Fields of the buffer, `size` int32 each; floats are stored by their bits, and the keys, of 64 bits, take the last two.
_TOKENS, _POSITIONS, _SLOTS, _CHAIN, _IS_CHAINED, _SCORED, _SOURCE, _DRAW_AT, *_SAMPLED, _KEYS = range(13)
_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P = _SAMPLED
_NUM_FIELDS = 14
_NUM_INTS, _NUM_SLOTS = 1 << 14, 1 << 10  # room for the first work list, and its partial results


def padded_size(num: int) -> int:
    """The smallest step size that holds so many: 16, 32, 48, 64, 96, 128, 192, 256, ... (2^n and 1.5 * 2^n)."""
    size = MIN_SIZE
    while size < num:
        size *= 2
    between = size // 4 * 3
    return between if between >= num and between % MIN_SIZE == 0 else size


class StepKind(NamedTuple):
    """What one step can run."""

    size: int  # queries, rows that draw, and queries that are scored, at most
    is_filtered: bool  # whether any row has top-k, top-p or min-p
    is_mixed: bool  # False: row i draws from query i, and no query is scored but at marks


@dataclass
class Inputs:
    """The tensors that a forward reads: q queries, of which m are scored, and n rows that draw."""

    tokens: torch.Tensor  # (q,) int32
    positions: torch.Tensor  # (q,) int32
    slots: torch.Tensor  # (q,) int32
    chain: torch.Tensor | None  # (q,) int32: the row that drew the token in the forward before; None: no token is such
    is_chained: torch.Tensor | None  # (q,) bool: whether it is; otherwise it is in `tokens`
    scored: torch.Tensor | None  # (m,) int32
    source: torch.Tensor | None  # (n,) int32; None: row i draws from query i
    sampling: tuple[torch.Tensor, ...]  # (n,) each
    is_filtered: bool


@dataclass
class Outputs:
    """What forwards write. `next_tokens` are those of `drawn`, fit to be read by the next: an error's row goes on."""

    drawn: torch.Tensor  # (3, rows) int32: tokens, and the bits of log-probabilities and of the trunk head's scores
    next_tokens: torch.Tensor  # (rows,) int32
    every_row: torch.Tensor  # (rows,) int32: 0, 1, 2, ...
    marks: torch.Tensor  # (vocabulary + 1,) bool: tokens at which the trunk head is read; the last is the error token's

    @classmethod
    def of(cls, parts: ModelParts, num_rows: int) -> Outputs:
        drawn = torch.zeros(3, num_rows, dtype=torch.int32, device=parts.pool.k.device)
        every_row = torch.arange(num_rows, dtype=torch.int32, device=drawn.device)
        marks = torch.zeros(parts.decoder.config.vocab_size + 1, dtype=torch.bool, device=drawn.device)
        return cls(drawn, torch.zeros_like(every_row), every_row, marks)


def compute(
    parts: ModelParts, inputs: Inputs, attended: Plan | AttentionWork, out: Outputs
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs a forward, draws into `out`, and returns hidden states, (q or more, H), and scores, (m,) float32."""
    tokens, impl = inputs.tokens, parts.decoder.placement.impl
    if inputs.chain is not None:
        tokens = torch.where(inputs.is_chained, out.next_tokens.index_select(0, inputs.chain), tokens)
    caches = parts.pool.k, parts.pool.v
    hidden = parts.decoder.forward(tokens, attended, inputs.positions, inputs.slots, *caches)
    scores = None
    if inputs.scored is not None and parts.score_head is not None:
        scores = parts.score_head.score(hidden, inputs.scored, impl)
    if inputs.sampling:
        num = len(inputs.sampling[0])
        read = hidden[:num] if inputs.source is None else hidden.index_select(0, inputs.source)
        _draw(parts, read, inputs, out.drawn[:, :num], out)
    return hidden, scores


def _draw(parts: ModelParts, hidden: torch.Tensor, inputs: Inputs, drawn: torch.Tensor, out: Outputs) -> None:
    marks = None if parts.score_head is None else out.marks
    tokens, logprobs, *is_marked = parts.lm_head.draw(hidden, inputs.sampling, inputs.is_filtered, marks)
    drawn[0].copy_(tokens)
    drawn[1].view(torch.float32).copy_(logprobs)
    torch.clamp(drawn[0], min=0, out=out.next_tokens[: len(tokens)])
    if parts.score_head is not None:
        every_row, impl = out.every_row[: len(tokens)], parts.decoder.placement.impl
        scores = parts.score_head.score(hidden, every_row, impl, *is_marked)
        drawn[2].view(torch.float32).copy_(scores)


class Step:
    """Runs forwards of one kind. What is not used is padding: it stores nothing, sees nothing, and is not read.

    Everything that a plan changes comes in one copy: the queries' tokens, positions and slots, what is read of them,
    and after them the attention's work list, whose counts the kernels read on the device. This holds if attention runs
    in CUDA or Triton and no layer has a window. Otherwise the host reads the plan in every launch, without a graph.
    """

    def __init__(
        self,
        parts: ModelParts,
        transfers: Transfers,
        make_graph: Callable[[Callable[[], None]], Graph] | None,  # None: every step is launched op by op
        kind: StepKind,
        out: Outputs,
    ):
        self.parts, self.transfers, self.make_graph = parts, transfers, make_graph
        self.kind, self.out = kind, out
        config, k = parts.decoder.part, parts.pool.k
        query = k.new_empty(kind.size, config.num_heads, config.head_dim)
        has_windows = any(config.window(i) is not None for i in range(config.num_layers))
        self.work: AttentionWork | None = None
        if implementation(parts.decoder.placement.impl, query) in ("cuda", "triton") and not has_windows:
            heads = config.num_heads, config.num_kv_heads, config.head_dim
            self.work = AttentionWork(*heads, k.device, num_ints=0, num_slots=_NUM_SLOTS)
        self.graph: Graph | None = None
        self.scores: torch.Tensor | None = None  # (size,) float32, if the kind is mixed and there is a head
        self._blank = np.zeros((_NUM_FIELDS, kind.size), np.int32)
        self._blank[_SLOTS] = -1
        self._blank[_TOP_P] = np.float32(1).view(np.int32)
        self._place(_NUM_INTS if self.work is not None else 0)

    def run(self, forward: Forward, chain: np.ndarray | None) -> torch.Tensor | None:
        """Draws into `out` and returns the scores, (size,) float32 of which the first are those of `forward.scored`."""
        self._load(forward, chain)
        if self.graph is not None:
            self.graph.replay()
        elif self.work is None:
            self._launch(forward.plan)
        else:
            self._launch(self.work)
            if self.make_graph is not None:
                self.graph = self.make_graph(lambda: self._launch(self.work))
        return self.scores

    def _load(self, forward: Forward, chain: np.ndarray | None) -> None:
        """Puts a forward into the buffers."""
        plan, size = forward.plan, self.kind.size
        work, fields = self._listed(plan), _NUM_FIELDS * size
        staged = self.transfers.staged(4 * (fields + len(work))).view(torch.int32)
        host = staged.numpy()
        host[:fields], host[fields:] = self._blank.reshape(-1), work
        grid = host[:fields].reshape(_NUM_FIELDS, size)
        num = len(plan.tokens)
        grid[_TOKENS, :num], grid[_POSITIONS, :num], grid[_SLOTS, :num] = plan.tokens, plan.positions, forward.slots
        if chain is not None:
            np.maximum(chain, 0, out=grid[_CHAIN, :num])
            grid[_IS_CHAINED].view(np.bool_)[:num] = chain >= 0
        if self.kind.is_mixed:
            grid[_SCORED, : len(forward.scored)] = forward.scored
        if forward.num_drawn:
            self._load_rows(forward, grid)
        self.ints[: len(host)].copy_(staged, non_blocking=True)

    def _load_rows(self, forward: Forward, grid: np.ndarray) -> None:
        keys, *columns = forward.sampling
        num = len(keys)
        for field, column in zip((_DRAW_AT, *_SAMPLED), columns, strict=True):
            grid[field, :num] = column.view(np.int32)
        grid[_KEYS:].reshape(-1).view(np.int64)[:num] = keys
        if self.kind.is_mixed:
            grid[_SOURCE, :num] = forward.where[forward.pick]

    def _listed(self, plan: Plan) -> np.ndarray:
        """The attention's work list. If it does not fit, the buffers grow and the graph over them is made again."""
        if self.work is None:
            return np.zeros(0, np.int32)
        _, num_blocks, _, block_size, _ = self.parts.pool.k.shape
        work = self.work.make_list(plan, self.kind.size, num_blocks, block_size)
        room = len(self.ints) - _NUM_FIELDS * self.kind.size
        if self.work.grow_slots(work.num_slots):
            self.graph = None
        if len(work.ints) > room:
            self.graph = None
            self._place(2 * len(work.ints))
        return work.ints

    def _place(self, num_ints: int) -> None:
        """Makes the buffer, with room for a work list of `num_ints` int32, and the views into it."""
        size, fields = self.kind.size, _NUM_FIELDS * self.kind.size
        self.ints = torch.zeros(fields + num_ints, dtype=torch.int32, device=self.out.drawn.device)
        rows = self.ints[: _KEYS * size].view(_KEYS, size)
        sampling: tuple[torch.Tensor, ...] = ()
        if self.parts.lm_head is not None:
            temperature, top_p, min_p = (rows[i].view(torch.float32) for i in (_TEMPERATURE, _TOP_P, _MIN_P))
            keys = self.ints[_KEYS * size : fields].view(torch.int64)
            sampling = keys, rows[_DRAW_AT], temperature, rows[_TOP_K], top_p, min_p
        self.inputs = Inputs(
            rows[_TOKENS],
            rows[_POSITIONS],
            rows[_SLOTS],
            chain=rows[_CHAIN] if sampling else None,
            is_chained=rows[_IS_CHAINED].view(torch.bool)[:size] if sampling else None,
            scored=rows[_SCORED] if self.kind.is_mixed else None,
            source=rows[_SOURCE] if self.kind.is_mixed else None,
            sampling=sampling,
            is_filtered=self.kind.is_filtered,
        )
        if self.work is not None:
            self.work.read_from(self.ints[fields:], size)

    def _launch(self, attended: Plan | AttentionWork) -> None:
        """Runs the whole step on what the buffers hold."""
        _, scores = compute(self.parts, self.inputs, attended, self.out)
        if scores is not None:
            if self.scores is None:
                self.scores = torch.empty_like(scores)
            self.scores.copy_(scores)
