"""Long prefill: the many new tokens of one branch, by flash-attn where it is installed and by torch's SDPA elsewhere.

Such a run multiplies large matrices and shares few keys with other branches, which is what these kernels are made for.
Its keys and values are gathered from the cache once per layer; all other rows of the plan go through tree_attention's
own kernel.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ttc_kernels import choice
from ttc_kernels.choice import Choice


@dataclass(frozen=True, eq=False)  # compared by identity, as a plan is, to be a key of the kernels' tables
class Rest:
    """The part of a plan that is in no long run."""

    items: np.ndarray  # (num_items, 5) int32, as in KVTree.plan
    blocks: np.ndarray  # (num_block_ids,) int32


@dataclass(frozen=True)
class Run:
    """Query rows [row_lo, row_hi): the last tokens of a branch, each of which sees all before it and itself."""

    row_lo: int
    row_hi: int
    implementation: str  # "flash_attn" or "sdpa"
    block: torch.Tensor  # (tokens,) int64: for every token of the branch, the block of its keys and values
    offset: torch.Tensor  # (tokens,) int64: its place within the block

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """Fills `out` at the run's rows; the arguments are tree_attention's."""
        query = q[self.row_lo : self.row_hi]  # (rows, heads, head_dim)
        key, value = (cache[self.block, :, self.offset] for cache in (k_cache, v_cache))  # (tokens, KV heads, ...)
        if self.implementation == "flash_attn":
            from flash_attn import flash_attn_func  # an optional extra

            attended = flash_attn_func(query[None], key[None], value[None], softmax_scale=scale, causal=True)[0]
        else:
            attended = _sdpa(query, key, value, scale)
        out[self.row_lo : self.row_hi] = attended


@dataclass(frozen=True)
class Split:
    """A plan's long runs, and the plan of all other rows: None where there are none."""

    runs: tuple[Run, ...]
    rest: Rest | None


_SPLITS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by plan, then by type, shapes and device


def split_of(plan, q: torch.Tensor, k_cache: torch.Tensor) -> Split | None:
    """The long runs of a plan over the rows `q`, found once for as long as the plan lives; None where it has none.

    `choice.PREFILL` defines which runs are long, for each device and implementation. A plan without `row_start`, the
    rows of each branch, has none. Raises ValueError for a run that points outside the cache.
    """
    choices = [entry for entry in choice.PREFILL if entry.device == q.device.type]
    if not choices or not hasattr(plan, "row_start") or len(q) < min(entry.min_rows for entry in choices):
        return None
    known = _SPLITS.setdefault(plan, {})
    key = (q.dtype, *q.shape, q.device, len(k_cache), k_cache.shape[2])
    if key not in known:
        known[key] = _split(plan, q, len(k_cache), k_cache.shape[2], choices)
    return known[key]


def _split(plan, q: torch.Tensor, num_blocks: int, block_size: int, choices: Sequence[Choice]) -> Split | None:
    found: list[tuple[int, int, str, np.ndarray]] = []
    is_long = np.diff(plan.row_start) >= min(entry.min_rows for entry in choices)
    for branch in np.flatnonzero(is_long).tolist():
        row_lo, row_hi = plan.row_start[branch : branch + 2].tolist()
        applying = [entry.implementation for entry in choices if entry.applies(q[row_lo:row_hi])]
        if applying:
            slots = _slots(plan, row_hi - 1, block_size)
            if slots.min() < 0 or slots.max() >= num_blocks * block_size:
                raise ValueError(f"tree_attention: rows {row_lo} to {row_hi} name a block outside the cache")
            found.append((row_lo, row_hi, applying[-1], slots))
    if not found:
        return None
    is_run = np.zeros(len(q), bool)
    for row_lo, row_hi, *_ in found:
        is_run[row_lo:row_hi] = True
    items = [part for item in plan.items.tolist() for part in _others(item, is_run)]
    rest = None if is_run.all() else Rest(np.array(items, np.int32).reshape(-1, 5), plan.blocks)
    return Split(tuple(_runs(found, block_size, q.device)), rest)


def _runs(
    found: Sequence[tuple[int, int, str, np.ndarray]],  # rows, implementation and slots of each run
    block_size: int,
    device: torch.device,
) -> Iterator[Run]:
    """The runs, the indices of all of which are uploaded at once."""
    slots = np.concatenate([each for *_, each in found])
    places = torch.from_numpy(np.stack([slots // block_size, slots % block_size]))
    if device.type == "cuda":  # from pageable memory the copy would wait for all that runs on the GPU
        places = places.pin_memory().to(device, non_blocking=True)
    lengths = [len(each) for *_, each in found]
    for (row_lo, row_hi, implementation, _), (block, offset) in zip(found, places.split(lengths, 1), strict=True):
        yield Run(row_lo, row_hi, implementation, block, offset)


def _slots(plan, row: int, block_size: int) -> np.ndarray:
    """(tokens,) int64: the slots, block * block_size + offset, of all tokens that a row sees, in position order."""
    parts = []
    for row_lo, row_hi, block_offset, num_tokens, _ in plan.items.tolist():
        if row_lo <= row < row_hi:
            at = np.arange(num_tokens)
            parts.append(plan.blocks[block_offset + at // block_size].astype(np.int64) * block_size + at % block_size)
    return np.concatenate(parts)


def _others(item: Sequence[int], is_run: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The parts of an item whose rows are in no run. A causal item is one branch's: it stays whole or goes."""
    row_lo, row_hi, *what = item
    bounds = np.flatnonzero(np.diff(np.concatenate([[True], is_run[row_lo:row_hi], [True]]))) + row_lo
    for lo, hi in bounds.reshape(-1, 2).tolist():
        yield lo, hi, *what


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """(rows, heads, head_dim) of queries that are the last ones of (tokens, KV heads, head_dim) keys and values."""
    num_rows, num_heads, _ = query.shape
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    # For grouped heads in float32 torch has nothing but a product that stores all scores.
    is_grouped, is_half = num_heads != key.shape[1], query.dtype in (torch.bfloat16, torch.float16)
    if is_grouped and not is_half:
        key, value = (x.repeat_interleave(num_heads // x.shape[1], 1) for x in (key, value))
        is_grouped = False
    if num_rows == key.shape[2]:
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=is_grouped)
    else:
        from torch.nn.attention.bias import causal_lower_right  # brings Triton with it

        mask = causal_lower_right(num_rows, key.shape[2])
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=is_grouped)
    return attended[0].transpose(0, 1)
