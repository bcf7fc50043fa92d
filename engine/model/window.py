"""Sliding windows: a plan cut down to the last tokens that each query row may see.

An item of a plan is a run of whole blocks from a node's start, so it can leave out blocks but not begin within one.
Where a row's window begins within a block, the rest of that block is copied, layer by layer, to a scratch block at
the pool's end, and the row reads the copy. Everything else is read where it lies, once for all rows that see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

# Blocks at the end of the caches that belong to no node. More rows that begin within different blocks go in parts.
NUM_SCRATCH_BLOCKS = 32


@dataclass(frozen=True, eq=False)  # by identity: kernels know a plan again
class Part:
    """Query rows [row_lo, row_hi) of a forward; what tree_attention takes for a plan, rows counted from row_lo."""

    row_lo: int
    row_hi: int
    items: np.ndarray  # (num_items, 5) int32, as of KVTree.plan
    blocks: np.ndarray  # int32
    source: tuple[torch.Tensor, torch.Tensor]  # block and offset of every token to be copied, int64
    target: tuple[torch.Tensor, torch.Tensor]  # where to

    def copy_edges(self, *caches: torch.Tensor) -> None:
        """Fills the scratch blocks of one layer's caches, (blocks, KV heads, block size, head dim)."""
        if len(self.source[0]):
            for cache in caches:
                cache[self.target[0], :, self.target[1]] = cache[self.source[0], :, self.source[1]]


class _Span(NamedTuple):
    """Rows [row_lo, row_hi) see tokens [skipped, num_tokens) of the run of blocks, as an item has it."""

    row_lo: int
    row_hi: int
    block_offset: int
    num_tokens: int
    is_causal: bool
    skipped: int


def clip(plan, window: int, block_size: int, num_blocks: int, device: torch.device | str = "cpu") -> list[Part] | None:
    """The parts of a plan under a window of so many tokens, one after the other; None where it changes nothing.

    `num_blocks` counts the caches' blocks, of which the last NUM_SCRATCH_BLOCKS hold no token of the plan. The parts
    share them: each is to be copied and run before the next is copied. `device` is the caches'.
    """
    first_seen = np.asarray(plan.positions, dtype=np.int64) - (window - 1)
    if first_seen.max() <= 0:
        return None
    scratch = num_blocks - NUM_SCRATCH_BLOCKS
    assert plan.blocks.max() < scratch, "the caches of a model with a sliding window need scratch blocks"
    spans = list(_spans(plan.items, first_seen, block_size))
    edges = _number_edges(spans, plan.blocks)
    edge_of_row = np.full(len(first_seen), -1)
    for span, edge in edges.items():
        edge_of_row[span.row_lo : span.row_hi] = edge
    bounds = _part_bounds(edge_of_row.tolist())
    return [_part(lo, hi, spans, edges, plan.blocks, scratch, device) for lo, hi in pairwise(bounds)]


def _spans(items: np.ndarray, first_seen: np.ndarray, block_size: int) -> Iterator[_Span]:
    """What is left of every item, a row's spans in position order; of a row no more than the first is skipped into."""
    num_seen = np.zeros(len(first_seen), np.int64)  # tokens of each row's path in the items so far
    for row_lo, row_hi, block_offset, num_tokens, causal in items.tolist():
        start = num_seen[row_hi - 1]
        limit = np.full(row_hi - row_lo, num_tokens, np.int64)
        if causal:
            limit -= np.arange(row_hi - row_lo - 1, -1, -1)
        num_seen[row_lo:row_hi] += limit
        first = first_seen[row_lo:row_hi] - start
        if first.max() <= 0:
            yield _Span(row_lo, row_hi, block_offset, num_tokens, bool(causal), 0)
            continue
        first = first.clip(min=0)
        whole = -(-first // block_size)  # the first block that a row sees all of
        ends = np.minimum(limit, whole * block_size)  # of the block before it
        keys = np.stack([first, ends])
        for lo, hi in _runs(keys, (first % block_size > 0) & (first < limit)):
            block = int(first[lo]) // block_size
            edge = int(ends[lo]) - block * block_size, False, int(first[lo]) % block_size
            yield _Span(row_lo + lo, row_lo + hi, block_offset + block, *edge)
        for lo, hi in _runs(whole[None], limit > whole * block_size):
            left = int(limit[hi - 1] - whole[lo] * block_size)
            yield _Span(row_lo + lo, row_lo + hi, block_offset + int(whole[lo]), left, bool(causal) and hi - lo > 1, 0)


def _runs(keys: np.ndarray, is_wanted: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring columns that are wanted and alike in `keys`, (num_keys, n)."""
    changes = np.any(keys[:, 1:] != keys[:, :-1], axis=0) | (is_wanted[1:] != is_wanted[:-1])
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(is_wanted)]
    for lo, hi in pairwise(bounds):
        if is_wanted[lo]:
            yield lo, hi


def _number_edges(spans: list[_Span], blocks: np.ndarray) -> dict[_Span, int]:
    """The spans that begin within a block, each with a number; rows that begin at the same token share one."""
    numbers: dict[tuple[int, int, int], int] = {}
    return {
        span: numbers.setdefault((int(blocks[span.block_offset]), span.skipped, span.num_tokens), len(numbers))
        for span in spans
        if span.skipped
    }


def _part_bounds(edge_of_row: list[int]) -> list[int]:
    """Row ranges [bounds[i], bounds[i + 1]) that need no more scratch blocks than there are."""
    bounds, used = [0], set()
    for row, edge in enumerate(edge_of_row):
        if edge >= 0 and edge not in used and len(used) == NUM_SCRATCH_BLOCKS:
            bounds.append(row)
            used = set()
        if edge >= 0:
            used.add(edge)
    return [*bounds, len(edge_of_row)]


def _part(
    lo: int,
    hi: int,
    spans: list[_Span],
    edges: dict[_Span, int],
    blocks: np.ndarray,
    scratch: int,
    device: torch.device | str,
) -> Part:
    items, places, copies = [], {}, []
    for span in spans:
        a, b = max(span.row_lo, lo), min(span.row_hi, hi)
        if a >= b:
            continue
        num_tokens = span.num_tokens - (span.row_hi - b if span.is_causal else 0)
        offset = span.block_offset
        if span.skipped:
            edge = edges[span]
            if edge not in places:
                places[edge] = len(places)
                for i in range(span.skipped, num_tokens):
                    copies.append((blocks[offset], i, scratch + places[edge], i - span.skipped))
            offset, num_tokens = len(blocks) + places[edge], num_tokens - span.skipped
        items.append((a - lo, b - lo, offset, num_tokens, span.is_causal and b - a > 1))
    moved = torch.tensor(copies, dtype=torch.int64).reshape(-1, 4).to(device)
    all_blocks = np.concatenate([blocks, np.arange(scratch, scratch + len(places))]).astype(np.int32)
    return Part(lo, hi, np.array(items, np.int32), all_blocks, (moved[:, 0], moved[:, 1]), (moved[:, 2], moved[:, 3]))
