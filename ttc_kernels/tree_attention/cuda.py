"""tree_attention on an NVIDIA GPU: the work list of a plan, and the call.

The CUDA kernel takes float16 and bfloat16, head sizes 64 and 128, blocks of a power of two, and keys and values
with adjacent head_dim: what `kv_cache.allocate` gives on a GPU (on a CPU its keys are transposed in a block).
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

from ttc_kernels import _native
from ttc_kernels.cuda import Library, describe, library

HEAD_DIMS = (64, 128)


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
        num_wanted: int = 264,  # units in all, about, per plan: two for each processor of an H100
        split_tokens: int = 0,  # tokens of a node in a unit; 0: as num_wanted asks
    ):
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.num_wanted, self.split_tokens = num_wanted, split_tokens
        self.device = torch.device(device)
        self.may_grow = True
        self.num_rows = 0
        self.ints = torch.empty(0, dtype=torch.int32, device=device)
        self.partial = torch.empty(0, device=device)  # (slots, num_heads, head_dim)
        self.partial_lse = torch.empty(0, device=device)  # (slots, num_heads)
        self._make_room(num_ints, num_slots)

    def update(self, plan, num_rows: int, num_blocks: int, block_size: int) -> None:
        """Takes a plan over `num_rows` query rows; ValueError for one that points outside the rows or the cache."""
        work = self.listed(plan, num_rows, num_blocks, block_size)
        self._make_room(len(work), int(work[6]))
        self.num_rows = num_rows
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
        self.ints, self.num_rows = ints, num_rows

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


def tree_attention(
    q: torch.Tensor,  # (rows, num_heads, head_dim)
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    v_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    plan,
    scale: float,
    out: torch.Tensor | None = None,  # (rows, num_heads, head_dim)
    *,
    lib: Library | None = None,
) -> torch.Tensor:
    """`reference.tree_attention` in two launches.

    `plan` may be an AttentionWork, which holds one already; else its list is made at the first call and uploaded once
    for as long as the plan lives. Raises ValueError for what the kernel does not have, RuntimeError where a launch
    fails.
    """
    lib = lib or library()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    device = lib.check_device("tree_attention", q=q, k_cache=k_cache, v_cache=v_cache, out=out)
    _check(q, k_cache, v_cache, out)
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    work = plan if isinstance(plan, AttentionWork) else _work_of(plan, q, k_cache)
    expected = (num_rows, num_heads, num_kv_heads, head_dim, device)
    held = (work.num_rows, work.num_heads, work.num_kv_heads, work.head_dim, work.ints.device)
    if held != expected:
        raise ValueError(
            "tree_attention: work must be for (rows, num_heads, num_kv_heads, head_dim, device) = "
            f"{expected}, got {held}"
        )
    lib.call(
        "tree_attention",
        device,
        f"q {describe(q)}, k_cache {describe(k_cache)}",
        q.data_ptr(),
        *q.stride()[:2],
        k_cache.data_ptr(),
        *k_cache.stride()[:3],
        v_cache.data_ptr(),
        *v_cache.stride()[:3],
        out.data_ptr(),
        work.partial.data_ptr(),
        work.partial_lse.data_ptr(),
        work.ints.data_ptr(),
        num_rows,
        num_heads,
        num_kv_heads,
        head_dim,
        block_size.bit_length() - 1,
        q.dtype is torch.bfloat16,
        scale,
    )
    return out


_WORK: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by plan, then by what else decides


def _work_of(plan, q: torch.Tensor, k_cache: torch.Tensor) -> AttentionWork:
    """The work of a plan, in which all layers of a forward find it; ValueError for one that points outside."""
    (num_rows, num_heads, head_dim), (num_blocks, num_kv_heads, block_size, _) = q.shape, k_cache.shape
    known = _WORK.setdefault(plan, {})
    key = (num_rows, num_heads, num_kv_heads, head_dim, num_blocks, block_size, q.device)
    if key not in known:
        work = AttentionWork(num_heads, num_kv_heads, head_dim, q.device)
        work.update(plan, num_rows, num_blocks, block_size)
        known[key] = work
    return known[key]


def _check(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, out: torch.Tensor) -> None:
    is_laid_out = (
        q.ndim == 3
        and k_cache.ndim == 4
        and v_cache.shape == k_cache.shape
        and k_cache.shape[3] == q.shape[2]
        and q.shape[2] in HEAD_DIMS
        and q.shape[1] % k_cache.shape[1] == 0
        and k_cache.shape[2].bit_count() == 1
        and q.dtype in (torch.float16, torch.bfloat16)
        and k_cache.dtype is v_cache.dtype is out.dtype is q.dtype
        and out.shape == q.shape
        and out.is_contiguous()
    )
    # Keys and values are copied 16 bytes at a time, queries read 4.
    if not is_laid_out or not (_is_aligned(q, 4) and _is_aligned(k_cache, 16) and _is_aligned(v_cache, 16)):
        raise ValueError(
            "tree_attention: the CUDA kernel takes float16 or bfloat16, head_dim 64 or 128, block_size a power of "
            "two, adjacent head_dim, rows of keys and values aligned to 16 bytes and of queries to 4, out "
            f"contiguous, got q {describe(q)}, k_cache {describe(k_cache)}, v_cache {describe(v_cache)}, out "
            f"{describe(out)}"
        )


def _is_aligned(x: torch.Tensor, num_bytes: int) -> bool:
    """Whether every row of the last dimension is dense and starts at a multiple of num_bytes."""
    per = num_bytes // x.element_size()
    return x.stride(-1) == 1 and x.data_ptr() % num_bytes == 0 and all(s % per == 0 for s in x.stride()[:-1])
