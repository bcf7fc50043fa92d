"""One decode step in buffers that keep their addresses, so that its CUDA graph is replayed while the tree changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.runtime.executors.base import ModelParts
from engine.runtime.executors.cuda_graph import Graph
from engine.runtime.executors.transfers import Transfers
from ttc_kernels._native import Plan
from ttc_kernels.tree_attention import implementation
from ttc_kernels.tree_attention.work import AttentionWork

MIN_SIZE = 16  # rows
# Forwards that the host starts one after the other, before it has seen what the earlier ones drew. A row that ends in
# the first of them is computed for nothing in the others. Unmeasured: no GPU at hand.
MAX_AHEAD = 4
# Fields of the buffer, `size` int32 each; floats are stored by their bits, and the keys, of 64 bits, take the last two.
_TOKENS, _POSITIONS, _SLOTS, _DRAW_AT, _TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _KEYS = range(9)
_NUM_FIELDS = 10
_NUM_INTS, _NUM_SLOTS = 1 << 14, 1 << 10  # room for the first work list, and its partial results


def padded_size(num_rows: int) -> int:
    """The smallest step size that holds the rows: 16, 32, 48, 64, 96, 128, 192, 256, ... (2^n and 1.5 * 2^n)."""
    size = MIN_SIZE
    while size < num_rows:
        size *= 2
    between = size // 4 * 3
    return between if between >= num_rows and between % MIN_SIZE == 0 else size


class DecodeStep:
    """Decodes up to `size` rows. The unused ones are padding: they store nothing and see nothing.

    Everything that a plan changes comes in one copy: the rows' tokens, positions, slots and sampling arguments, and
    after them the attention's work list, whose counts the kernels read on the device. This holds if attention runs in
    CUDA or Triton and no layer has a window. Otherwise the host reads the plan in every launch, and there is no graph.
    """

    def __init__(
        self,
        parts: ModelParts,
        transfers: Transfers,
        make_graph: Callable[[Callable[[], None]], Graph] | None,  # None: every step is launched op by op
        size: int,  # rows
        is_filtered: bool,  # whether any row has top-k, top-p or min-p
    ):
        self.parts, self.transfers, self.make_graph = parts, transfers, make_graph
        self.size, self.is_filtered = size, is_filtered
        self.impl = parts.decoder.placement.impl
        config, k = parts.decoder.part, parts.pool.k
        query = k.new_empty(size, config.num_heads, config.head_dim)
        has_windows = any(config.window(i) is not None for i in range(config.num_layers))
        self.work: AttentionWork | None = None
        if implementation(self.impl, query) in ("cuda", "triton") and not has_windows:
            heads = config.num_heads, config.num_kv_heads, config.head_dim
            self.work = AttentionWork(*heads, k.device, num_ints=0, num_slots=_NUM_SLOTS)
        self.graph: Graph | None = None
        self._blank = np.zeros((_NUM_FIELDS, size), np.int32)
        self._blank[_SLOTS] = -1
        self._blank[_TOP_P] = np.float32(1).view(np.int32)
        self.drawn = torch.empty(3, size, dtype=torch.int32, device=k.device)  # tokens, log-probabilities, scores
        self.all_drawn = torch.empty(MAX_AHEAD, 3, size, dtype=torch.int32, device=k.device)
        # Tokens at which the trunk head is read; the last column is the error token's.
        self.marks = torch.zeros(config.vocab_size + 1, dtype=torch.bool, device=k.device)
        self._marks: np.ndarray | None = None  # what they were copied from
        self.every_row = torch.arange(size, dtype=torch.int32, device=k.device)
        self._place(_NUM_INTS if self.work is not None else 0)

    def mark(self, marks: np.ndarray | None) -> None:
        """Sets the tokens at which the trunk head is read: (vocabulary + 1,) bool, None for none."""
        if marks is not self._marks:
            self._marks = marks
            self.marks.copy_(torch.from_numpy(np.zeros(len(self.marks), bool) if marks is None else marks))

    def run(self, plan: Plan, sampling: Sequence[torch.Tensor], num_ahead: int = 0) -> None:
        """Fills `all_drawn[num_ahead]`, (3, size) int32: tokens, and the bits of log-probabilities and of scores.

        The scores are NaN at tokens that are not marked. `sampling` is on the CPU, in the plan's order. With
        `num_ahead` > 0 the host has not seen the tokens of the runs before: the rows continue from the tokens that the
        last run drew, not from the plan's.
        """
        self._load(plan, sampling)
        if num_ahead:
            torch.clamp(self.drawn[0], min=0, out=self.tokens)  # an error's row goes on with any token
        if self.graph is not None:
            self.graph.replay()
        elif self.work is None:
            self._launch(plan)
        else:
            self._launch(self.work)
            if self.make_graph is not None:
                self.graph = self.make_graph(lambda: self._launch(self.work))
        self.all_drawn[num_ahead].copy_(self.drawn)

    def _load(self, plan: Plan, sampling: Sequence[torch.Tensor]) -> None:
        """Puts a plan into the buffers."""
        num, fields = len(plan.tokens), _NUM_FIELDS * self.size
        work = self._listed(plan)
        staged = self.transfers.staged(4 * (fields + len(work))).view(torch.int32)
        host = staged.numpy()
        host[:fields], host[fields:] = self._blank.reshape(-1), work
        grid = host[:fields].reshape(_NUM_FIELDS, self.size)
        keys, positions, temperature, top_k, top_p, min_p = (x.numpy() for x in sampling)
        for field, column in (
            (_TOKENS, plan.tokens),
            (_POSITIONS, plan.positions),
            (_SLOTS, plan.slots),
            (_DRAW_AT, positions),
            (_TEMPERATURE, temperature),
            (_TOP_K, top_k),
            (_TOP_P, top_p),
            (_MIN_P, min_p),
        ):
            grid[field, :num] = column.view(np.int32)
        grid[_KEYS:].reshape(-1).view(np.int64)[:num] = keys
        self.ints[: len(host)].copy_(staged, non_blocking=True)

    def _listed(self, plan: Plan) -> np.ndarray:
        """The attention's work list. If it does not fit, the buffers grow and the graph over them is made again."""
        if self.work is None:
            return np.zeros(0, np.int32)
        _, num_blocks, _, block_size, _ = self.parts.pool.k.shape
        work = self.work.make_list(plan, self.size, num_blocks, block_size)
        room = len(self.ints) - _NUM_FIELDS * self.size
        if self.work.grow_slots(work.num_slots):
            self.graph = None
        if len(work.ints) > room:
            self.graph = None
            self._place(2 * len(work.ints))
        return work.ints

    def _place(self, num_ints: int) -> None:
        """Makes the buffer, with room for a work list of `num_ints` int32, and the views into it."""
        size, fields = self.size, _NUM_FIELDS * self.size
        self.ints = torch.zeros(fields + num_ints, dtype=torch.int32, device=self.drawn.device)
        rows = self.ints[: _KEYS * size].view(_KEYS, size)
        self.tokens, self.positions, self.slots = rows[_TOKENS], rows[_POSITIONS], rows[_SLOTS]
        temperature, top_p, min_p = (rows[i].view(torch.float32) for i in (_TEMPERATURE, _TOP_P, _MIN_P))
        keys = self.ints[_KEYS * size : fields].view(torch.int64)
        self.sampling = (keys, rows[_DRAW_AT], temperature, rows[_TOP_K], top_p, min_p)
        if self.work is not None:
            self.work.read_from(self.ints[fields:], size)

    def _launch(self, attended: Plan | AttentionWork) -> None:
        """Runs the whole step on what the buffers hold."""
        parts, caches = self.parts, (self.parts.pool.k, self.parts.pool.v)
        hidden = parts.decoder.forward(self.tokens, attended, self.positions, self.slots, *caches)[: self.size]
        marks = None if parts.score_head is None else self.marks
        tokens, logprobs, *is_marked = parts.lm_head.draw(hidden, self.sampling, self.is_filtered, marks)
        self.drawn[0].copy_(tokens)
        self.drawn[1].view(torch.float32).copy_(logprobs)
        if parts.score_head is not None:
            scores = parts.score_head.score(hidden, self.every_row, self.impl, *is_marked)
            self.drawn[2].view(torch.float32).copy_(scores)
