"""What a GPU does of a plan: its work list, made in C++, and the room for partial results; Triton's and CUDA's."""

from __future__ import annotations

import weakref

import numpy as np
import torch

from ttc_kernels import _native

NUM_WANTED = 264  # units of work, about, and programs that share them out: two for each processor of an H100
NARROW, WIDE = 16, 64  # packed rows (query x head of a KV head's group) in a unit: csrc/cuda/work.h


class AttentionWork:
    """What a plan asks of the GPU, made once per plan and read in every layer.

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
        split_tokens: int = 0,  # tokens of a node in a unit; 0: as num_wanted asks
    ):
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.num_wanted, self.split_tokens = num_wanted, split_tokens
        self.device = torch.device(device)
        self.may_grow = True
        self.num_rows = 0
        self.num_units: int | None = None  # of the list, where the host has made it by `update`
        self.ints = torch.empty(0, dtype=torch.int32, device=device)
        self.partial = torch.empty(0, device=device)  # (slots, num_heads, head_dim)
        self.partial_lse = torch.empty(0, device=device)  # (slots, num_heads)
        self._make_room(num_ints, num_slots)

    def update(self, plan, num_rows: int, num_blocks: int, block_size: int) -> None:
        """Takes a plan over `num_rows` query rows; ValueError for one that points outside the rows or the cache."""
        work = self.listed(plan, num_rows, num_blocks, block_size)
        self._make_room(len(work), int(work[6]))
        self.num_rows, self.num_units = num_rows, int(work[0])
        self.ints[: len(work)].copy_(self._pinned(work), non_blocking=True)

    def listed(self, plan, num_rows: int, num_blocks: int, block_size: int) -> np.ndarray:
        """The list of a plan, int32, for whoever uploads it with other things; int 6 counts its partial results."""
        return _native.attention_work(
            plan.items,
            plan.blocks,
            num_rows,
            self.num_heads,
            self.num_kv_heads,
            num_blocks,
            block_size,
            self.num_wanted,
            self.split_tokens,
        )

    def read_from(self, ints: torch.Tensor, num_rows: int) -> None:
        """The list of `num_rows` query rows is in `ints` from now on, where somebody else puts it (`listed`)."""
        self.ints, self.num_rows, self.num_units = ints, num_rows, None

    def grow_slots(self, num_slots: int) -> bool:
        """Makes room for so many partial results; whether their buffers have new addresses."""
        before = self.partial
        self._make_room(0, num_slots)
        return self.partial is not before

    def _pinned(self, work: np.ndarray) -> torch.Tensor:
        """The list where the GPU can fetch it; torch keeps the memory until it has."""
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


_WORK: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by plan, then by what else decides


def work_of(plan, q: torch.Tensor, k_cache: torch.Tensor) -> AttentionWork:
    """The work of a plan, in which all layers of a forward find it; `plan` may be an AttentionWork itself.

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
