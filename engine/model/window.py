"""Sliding windows: cuts a plan down to the last tokens that each query row may attend to.

An item of a plan is a run of whole blocks of a node, so it can leave out blocks but not begin within one. Where a
row's window begins within a block, the rest of that block is copied, layer by layer, to a scratch block at the
pool's end, and the row reads the copy. All else is read in place, once for all rows that attend to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

# Blocks at the end of the caches that belong to no node. A forward that needs more of them runs in several parts.
NUM_SCRATCH_BLOCKS = 32


@dataclass(frozen=True, eq=False)  # equal by identity, by which kernels recognise a plan
class Part:
    """A plan of tree_attention for query rows [row_lo, row_hi) of a forward, counted from row_lo."""

    row_lo: int
    row_hi: int
    items: np.ndarray  # (num_items, 5) int32, columns as in KVTree.plan
    blocks: np.ndarray  # int32
    source: tuple[torch.Tensor, torch.Tensor]  # block and offset of every token to copy, int64
    target: tuple[torch.Tensor, torch.Tensor]  # block and offset that each is copied to, int64

    def copy_edges(self, *caches: torch.Tensor) -> None:
        """Fills the scratch blocks of one layer's caches, (blocks, KV heads, block size, head dim)."""
        if len(self.source[0]):
            for cache in caches:
                cache[self.target[0], :, self.target[1]] = cache[self.source[0], :, self.source[1]]


class _Span(NamedTuple):
    """An item whose rows [row_lo, row_hi) attend to tokens [skipped, num_tokens) of its run of blocks."""

    row_lo: int
    row_hi: int
    block_offset: int
    num_tokens: int
    is_causal: bool
    skipped: int


def clip(
    plan,  # of ttc_kernels._native.KVTree
    window: int,  # tokens that a query attends to, itself included
    block_size: int,  # tokens
    num_blocks: int,  # of the caches; the last NUM_SCRATCH_BLOCKS hold no token of the plan
    device: torch.device | str = "cpu",  # the caches'
) -> list[Part] | None:
    """A plan under a sliding window as parts, to be run in order; None if the window changes nothing.

    The parts share the scratch blocks, so copy the edges of one and run it before copying those of the next.
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
    """What is left of every item, a row's spans in position order; only a row's first span skips tokens."""
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
    """Ranges of adjacent wanted columns with equal `keys`, (num_keys, n)."""
    changes = np.any(keys[:, 1:] != keys[:, :-1], axis=0) | (is_wanted[1:] != is_wanted[:-1])
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(is_wanted)]
    for lo, hi in pairwise(bounds):
        if is_wanted[lo]:
            yield lo, hi


def _number_edges(spans: list[_Span], blocks: np.ndarray) -> dict[_Span, int]:
    """Numbers the spans that begin within a block; spans of the same tokens share a number."""
    numbers: dict[tuple[int, int, int], int] = {}
    return {
        span: numbers.setdefault((int(blocks[span.block_offset]), span.skipped, span.num_tokens), len(numbers))
        for span in spans
        if span.skipped
    }


def _part_bounds(edge_of_row: list[int]) -> list[int]:
    """Bounds of row ranges [bounds[i], bounds[i + 1]), each with at most NUM_SCRATCH_BLOCKS distinct edges."""
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
    """Rows [lo, hi) as a part; the scratch blocks begin at block `scratch` of the caches."""
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
