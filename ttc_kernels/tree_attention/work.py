"""The work list from which a GPU computes tree attention, and the buffers of its partial results.

Triton's and CUDA's kernels read the same list. C++ makes it on the host; csrc/cuda/work.h says what its fields mean.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from ttc_kernels import _native

NUM_WANTED = 264  # units per plan, about, and programs that share them: two for each processor of an H100
NARROW, WIDE, TALL = 16, 64, 128  # most packed rows (query x head of a KV head's group) in a unit: csrc/cuda/work.h


class WorkHeader(IntEnum):
    """Where each field of the C++ struct WorkHeader, with which a work list begins, lies: an index into its int32."""

    NUM_UNITS = 0
    NUM_ROWS = 1
    NUM_LONG_UNITS = 2
    SHORT_AT_ONCE = 3
    UNITS_AT = 4
    BLOCKS_AT = 5
    MERGE_START_AT = 6
    MERGE_SLOTS_AT = 7
    NUM_SLOTS = 8
    NUM_INTS = 9
    WRITERS_AT = 10
    ARRIVED_AT = 11
    QUEUE_AT = 12


class WorkUnit(IntEnum):
    """Where each field of the C++ struct WorkUnit lies: an index into the int32 of one unit."""

    ROW_LO = 0
    PACKED_LO = 1
    NUM_PACKED = 2
    BLOCK_OFFSET = 3
    KV_LO = 4
    KV_HI = 5
    CAUSAL_ADD = 6
    SLOT_BASE = 7


@dataclass(frozen=True)
class WorkList:
    """The work list of one plan, on the host."""

    ints: np.ndarray
    """(num_ints,) int32: header, units, block ids, the slots that each row merges, and who has written them."""

    @property
    def num_units(self) -> int:
        """Units of work for each KV head."""
        return int(self.ints[WorkHeader.NUM_UNITS])

    @property
    def num_slots(self) -> int:
        """Partial results, each of one row and all heads."""
        return int(self.ints[WorkHeader.NUM_SLOTS])


class AttentionWork:
    """The work list of a plan on the GPU, made once per plan and read in every layer.

    Its buffers grow to what a plan needs and keep their addresses as long as they suffice. A captured CUDA graph
    runs over whatever plan `update` was last given; with `may_grow=False` update raises RuntimeError rather than
    give the buffers new addresses.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device | str = "cuda",
        *,
        num_ints: int = 4096,  # room for the work list
        num_slots: int = 64,  # room for partial results, each of one row and all heads
        num_wanted: int = NUM_WANTED,  # units in all, about, per plan
        split_tokens: int = 0,  # tokens of a node in a unit; 0: as many as give about num_wanted units
    ):
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.num_wanted, self.split_tokens = num_wanted, split_tokens
        self.device = torch.device(device)
        self.may_grow = True
        self.num_rows = 0
        self.num_units: int | None = None  # known to the host only where `update` made the list
        self.ints = torch.empty(0, dtype=torch.int32, device=device)
        self.partial = torch.empty(0, device=device)  # (slots, num_heads, head_dim)
        self.partial_lse = torch.empty(0, device=device)  # (slots, num_heads)
        self._make_room(num_ints, num_slots)

    def update(self, plan, num_rows: int, num_blocks: int, block_size: int) -> None:
        """Takes a plan over `num_rows` query rows; ValueError for one that points outside the rows or the cache."""
        work = self.make_list(plan, num_rows, num_blocks, block_size)
        self._make_room(len(work.ints), work.num_slots)
        self.num_rows, self.num_units = num_rows, work.num_units
        self.ints[: len(work.ints)].copy_(self._pinned(work.ints), non_blocking=True)

    def make_list(self, plan, num_rows: int, num_blocks: int, block_size: int) -> WorkList:
        """The work list of a plan, for a caller that uploads it together with other data."""
        ints = _native.attention_work(
            plan,
            num_rows=num_rows,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            num_blocks=num_blocks,
            block_size=block_size,
            num_wanted=self.num_wanted,
            split_tokens=self.split_tokens,
        )
        return WorkList(ints)

    def read_from(self, ints: torch.Tensor, num_rows: int) -> None:
        """From now on the kernels read the list of `num_rows` query rows from `ints`, which the caller fills."""
        self.ints, self.num_rows, self.num_units = ints, num_rows, None

    def grow_slots(self, num_slots: int) -> bool:
        """Makes room for `num_slots` partial results; returns whether their buffers have new addresses."""
        before = self.partial
        self._make_room(0, num_slots)
        return self.partial is not before

    def _pinned(self, work: np.ndarray) -> torch.Tensor:
        """The list in memory that the GPU can copy from in the background; torch keeps it until that is done."""
        if self.device.type != "cuda":
            return torch.from_numpy(work)
        pinned = torch.empty(len(work), dtype=torch.int32, pin_memory=True)
        pinned.numpy()[:] = work
        return pinned

    def _make_room(self, num_ints: int, num_slots: int) -> None:
        slots = self.partial_lse.shape[0]
        if num_ints <= len(self.ints) and num_slots <= slots:
            return
        if not self.may_grow:
            raise RuntimeError(
                f"tree_attention: the plan needs {num_ints} ints and {num_slots} partial results, and the work list "
                f"that may not grow has room for {len(self.ints)} and {slots}"
            )
        if num_ints > len(self.ints):
            self.ints = torch.empty(max(num_ints, 2 * len(self.ints)), dtype=torch.int32, device=self.device)
        if num_slots > slots:
            slots = max(num_slots, 2 * slots)
            self.partial = torch.empty(slots, self.num_heads, self.head_dim, device=self.device)
            self.partial_lse = torch.empty(slots, self.num_heads, device=self.device)


_WORK: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by plan, then by shapes and device


def work_of(plan, q: torch.Tensor, k_cache: torch.Tensor) -> AttentionWork:
    """The work of a plan, made by the first layer of a forward that asks; `plan` may be an AttentionWork itself.

    Raises ValueError for a plan that points outside q or the cache, and for work of another shape.
    """
    (num_rows, num_heads, head_dim), (num_blocks, num_kv_heads, block_size, _) = q.shape, k_cache.shape
    if isinstance(plan, AttentionWork):
        expected = (num_rows, num_heads, num_kv_heads, head_dim, q.device)
        held = (plan.num_rows, plan.num_heads, plan.num_kv_heads, plan.head_dim, plan.ints.device)
        if held != expected:
            raise ValueError(
                "tree_attention: work must be for (rows, num_heads, num_kv_heads, head_dim, device) = "
                f"{expected}, got {held}"
            )
        return plan
    known = _WORK.setdefault(plan, {})
    key = (num_rows, num_heads, num_kv_heads, head_dim, num_blocks, block_size, q.device)
    if key not in known:
        work = AttentionWork(num_heads, num_kv_heads, head_dim, q.device)
        work.update(plan, num_rows, num_blocks, block_size)
        known[key] = work
    return known[key]
