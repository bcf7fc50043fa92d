"""The units of work that tree attention's kernel gets of a tree, and which way through the kernel each takes."""

from __future__ import annotations

from dataclasses import dataclass

from ttc_kernels import _native
from ttc_kernels.tree_attention.cases import Case
from ttc_kernels.tree_attention.work import NARROW, NUM_WANTED, WIDE, WorkHeader, WorkUnit

PARTIAL_BYTES = 2  # of an element of a partial result
DIRECT = -1  # the slot of a unit that writes `out` itself
_START = """
    const Heads heads(args);
    LongQueue queue = {args, shared<kDim>().next};
    BlockRing<T, kDim> ring = {args, shared_memory(), thread_index()};
    ring.next = Keys::of(args, 0, block_index());
    const Keys keys = ring.advance(0);
    queue.draw();
"""
_MERGE = """
    block_barrier();
    const int warp = ring.thread / 32, lane = ring.thread % 32;
    const int num = count_rows<kDim>(args, heads, unit_at(args, keys.unit), keys.kv_head, warp, kWarps, 0, warp, lane);
    merge_rows<T, kDim>(args, heads, num, warp, lane);
"""


@dataclass(frozen=True)
class Way:
    code: str
    """The way alone, in C++."""
    warps: int
    tokens: int
    """Of a tile."""
    num_steps: int = 1
    """That a tile is computed in, one after the other."""


WAYS = {
    "short": Way("attend_short_units<T, kDim>(args, Heads(args));", 1, 16),
    "narrow": Way(f"{_START} attend_unit<T, kDim, false>(args, heads, keys, ring, queue); {_MERGE}", 4, 64),
    "wide": Way(f"{_START} attend_unit<T, kDim, true>(args, heads, keys, ring, queue); {_MERGE}", 4, 64),
    "tall": Way(f"{_START} attend_tall_unit(args, heads, keys.unit, keys.kv_head, ring, queue); {_MERGE}", 4, 64, 4),
}


@dataclass(frozen=True)
class TreeUnit:
    """One unit of one KV head."""

    way: str
    num_tiles: int
    num_tokens: int
    num_partials: int  # packed rows whose partial result is written, and read again


def units_of(case: Case) -> list[TreeUnit]:
    """The units of each KV head of a tree."""
    plan, num_blocks = case.plan()
    ints = _native.attention_work(
        plan,
        num_rows=len(plan.positions),
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        num_blocks=num_blocks,
        block_size=case.block_size,
        num_wanted=NUM_WANTED,
    )
    at, num = int(ints[WorkHeader.UNITS_AT]), int(ints[WorkHeader.NUM_UNITS])
    rows = ints[at : at + num * len(WorkUnit)].reshape(num, len(WorkUnit))
    num_long = int(ints[WorkHeader.NUM_LONG_UNITS])
    return [_unit(row, i < num_long) for i, row in enumerate(rows.tolist())]


def _unit(row: list[int], is_long: bool) -> TreeUnit:
    num_packed, num_tokens = row[WorkUnit.NUM_PACKED], row[WorkUnit.KV_HI] - row[WorkUnit.KV_LO]
    of_rows = "narrow" if num_packed <= NARROW else "wide" if num_packed <= WIDE else "tall"
    way = of_rows if is_long else "short"
    num_tiles = -(-num_tokens // WAYS[way].tokens)
    return TreeUnit(way, num_tiles, num_tokens, 0 if row[WorkUnit.SLOT_BASE] == DIRECT else num_packed)
