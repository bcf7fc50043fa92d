"""The driver's loop, for any pool of replicas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from engine.distributed.assigner import MAX_LOSSES, Assigner
from engine.errors import UserError


class ReplicaLost(UserError):
    """A problem that was lost with a replica as often as it may be."""


@dataclass(frozen=True)
class Ended:
    """An item that a replica does not hold any more: `value` is what it made, or `is_lost`, with the replica."""

    replica: int
    item: int
    value: Any = None
    is_lost: bool = False


class Pool(Protocol):
    """Replicas that work on items. One that is lost comes back, empty."""

    size: int

    def window(self, replica: int) -> int:
        """How many items it should hold; 0 while it is not there."""
        ...

    def begin(self, replica: int, item: int) -> None:
        """Has a replica work on an item, beside what it holds."""
        ...

    def wait(self) -> list[Ended]:
        """What has ended since; waits a while for the first."""
        ...


def drive(pool: Pool, items: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Yields (item, what a replica made of it) as items end; a ReplicaLost in the place of what kills replicas."""
    assigner = Assigner(items, pool.size)
    while not assigner.is_done:
        for replica in range(pool.size):
            for item in assigner.next_for(replica, pool.window(replica)):
                pool.begin(replica, item)
        for each in pool.wait():
            if not each.is_lost:
                assigner.ended(each.replica, each.item)
                yield each.item, each.value
            elif assigner.lost(each.replica, each.item):
                yield each.item, ReplicaLost(f"{MAX_LOSSES} replicas were lost while they searched it, once alone")
