"""What the GPU kernels do of a plan: work items cut along rows and keys, and which partial results a row merges.

Cuts depend on the item's own keys and number of rows alone, and a row's partials merge in position order: what else
is in the plan changes no sum, how many rows share a long node may.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch

NARROW, WIDE = 16, 64  # packed rows (query × head of a KV head's group) in a tile
NUM_FIELDS = 10  # of a work item
# Keys that a program takes at most; those of an item with more than MAX_TILES tiles of rows, which fill the GPU by
# themselves, take that much more: fewer partials then. Unmeasured: no GPU at hand.
MAX_KEYS = 256
MAX_TILES = 4


@dataclass(frozen=True)
class Schedule:
    """Arrays of int32 on the device of q."""

    # (num_work, NUM_FIELDS), longest first: row_lo, num_rows, first_packed, block_offset, key_lo, key_hi, limit,
    # causal, partial, is_wide. Packed row p is row row_lo + p // group, of num_rows; row r of these sees keys
    # [key_lo, min(key_hi, limit + causal * r)) and its result goes to partial + r.
    work: torch.Tensor
    blocks: torch.Tensor  # the plan's block ids
    merge_start: torch.Tensor  # (num_rows + 1) first entry of each row in merge_from
    merge_from: torch.Tensor  # the partials of each row, in position order
    num_partials: int


_SCHEDULES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by plan, then by what else decides


def schedule_of(plan, num_rows: int, num_blocks: int, block_size: int, group: int, device: torch.device) -> Schedule:
    """The schedule of a plan for q of num_rows rows, made and uploaded once for as long as the plan lives.

    `group` is query heads per KV head. Raises ValueError for a plan that points outside q or the cache.
    """
    known = _SCHEDULES.setdefault(plan, {})
    key = (num_rows, num_blocks, block_size, group, device)
    if key not in known:
        items = np.asarray(plan.items).reshape(-1, 5).astype(np.int64)
        _check(items, plan.blocks, num_rows, num_blocks, block_size)
        known[key] = _upload(*_cut(items, num_rows, group), plan.blocks, device)
    return known[key]


def _check(items: np.ndarray, blocks: np.ndarray, num_rows: int, num_blocks: int, block_size: int) -> None:
    row_lo, row_hi, block_offset, num_tokens, _ = items.T
    num = -(-num_tokens // block_size)
    exceeds = (block_offset < 0) | (num_tokens < 1) | (block_offset + num > len(blocks))
    outside = np.concatenate([[0], np.cumsum((blocks < 0) | (blocks >= num_blocks))])
    first = np.where(exceeds, 0, block_offset)
    num_outside = outside[first + np.where(exceeds, 0, num)] - outside[first]
    for is_wrong, why in (
        ((row_lo < 0) | (row_lo >= row_hi) | (row_hi > num_rows), "has rows outside q"),
        (exceeds, "exceeds the plan's blocks"),
        (num_outside > 0, "names a block outside the cache"),
    ):
        if is_wrong.any():
            i = int(is_wrong.argmax())
            raise ValueError(f"tree_attention: item {i} {tuple(items[i].tolist())} {why}")


def _cut(items: np.ndarray, num_rows: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(work, merge_start, merge_from, num_partials) of items (n, 5)."""
    num_tiles = -(-(items[:, 1] - items[:, 0]) * group // WIDE)
    keys = MAX_KEYS * -(-num_tiles // MAX_TILES)
    item, part = _spread(-(-items[:, 3] // keys))  # runs of keys
    row_lo, row_hi, block_offset, num_tokens, causal = items[item].T
    key_lo = part * keys[item]
    key_hi = np.minimum(key_lo + keys[item], num_tokens)
    num = row_hi - row_lo
    limit = num_tokens - causal * (num - 1)
    first = np.maximum(0, key_lo + 1 - limit)  # rows before it see nothing of the run
    counts = num - first
    partial = np.cumsum(counts) - counts - first

    run, offset = _spread(counts)
    rows = row_lo[run] + first[run] + offset
    in_rows = np.argsort(rows, kind="stable")
    merge_from = (partial[run] + first[run] + offset)[in_rows]
    merge_start = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))])

    is_wide = counts * group > 2 * NARROW
    tile_rows = np.where(is_wide, WIDE, NARROW)
    run, tile = _spread(-(-counts * group // tile_rows))
    first_packed = first[run] * group + tile * tile_rows[run]
    fields = (row_lo, num, None, block_offset, key_lo, key_hi, limit, causal, partial, is_wide)
    work = np.stack([first_packed if field is None else field[run] for field in fields], axis=1)
    cost = (work[:, 5] - work[:, 4]) * tile_rows[run]
    return work[np.argsort(-cost, kind="stable")], merge_start, merge_from, len(rows)


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts (2, 3): (0, 0, 1, 1, 1) and (0, 1, 0, 1, 2)."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)


def _upload(
    work: np.ndarray,
    merge_start: np.ndarray,
    merge_from: np.ndarray,
    num_partials: int,
    blocks: np.ndarray,
    device: torch.device,
) -> Schedule:
    """All arrays in one copy, from pinned memory where there is a GPU."""
    parts = [work.ravel(), blocks, merge_start, merge_from]
    ends = np.cumsum([-(-len(part) // 4) * 4 for part in parts])  # each part starts at 16 bytes
    buffer = torch.zeros(int(ends[-1]), dtype=torch.int32, pin_memory=device.type == "cuda")
    for part, end in zip(parts, ends, strict=True):
        start = int(end) - -(-len(part) // 4) * 4
        buffer[start : start + len(part)] = torch.from_numpy(part.astype(np.int32))
    buffer = buffer.to(device, non_blocking=True)
    starts = [0, *ends[:-1].tolist()]
    placed = [buffer[start : start + len(part)] for start, part in zip(starts, parts, strict=True)]
    return Schedule(placed[0].view(-1, NUM_FIELDS), *placed[1:], num_partials)
