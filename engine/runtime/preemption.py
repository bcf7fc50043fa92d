"""Which branch gives way when the KV pool is full."""

from __future__ import annotations

from collections.abc import Container, Set

from engine.errors import UserError
from engine.runtime.segments import Segment, SegmentStore


class PoolTooSmall(UserError):
    """A branch that cannot fit the KV pool however much is suspended."""


def choose_victim(
    store: SegmentStore,
    decoding: Container[Segment],  # segments that are being generated
    busy: Set[Segment],  # segments that must keep their KV
    may_suspend: bool,  # whether a decoding segment may be chosen
) -> Segment | None:
    """The segment whose KV is to be freed next; None if all must stay.

    (The tree has evicted closed prefixes before.) Only leaves are chosen, never an ancestor that a resident branch
    shares. Segments that end an answer go first: nothing more is generated from them. Then other problems' segments
    go before the oldest problem's, so that the oldest always ends; segments with KV of their own before those without,
    which would free nothing; and the lowest priority first.
    """
    leaves = [segment for segment in store.leaves() if segment not in busy and (may_suspend or segment not in decoding)]
    if not leaves:
        return None
    oldest = min(segment.age for segment in store.resident)

    def turn(segment: Segment) -> tuple:
        is_empty = store.tree.num_tokens(segment.handle) <= segment.start
        return not segment.is_finished, segment.age == oldest, is_empty, segment.priority, -segment.age, -segment.start

    return min(leaves, key=turn)
