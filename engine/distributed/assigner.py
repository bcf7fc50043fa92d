"""Which replica works on what: windows, what lost replicas had, and what kills them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

MAX_LOSSES = 2  # replicas that an item may have been lost with


class Assigner:
    """Hands out items, numbers, in their order.

    A replica holds as many as its window is wide: enough to fill its batch and a few more. Towards the end it gets no
    more than its share of what is left, so that none sits on items while others are idle. What a lost replica held
    is handed out again at the end, alone: an item that is lost twice so is what kills replicas, and is given up.
    """

    def __init__(self, items: Iterable[int], num_replicas: int):
        self._left = deque(items)
        self._suspects: deque[int] = deque()  # what replicas were lost with
        self._losses: dict[int, int] = {}
        self._held: list[set[int]] = [set() for _ in range(num_replicas)]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left and nothing is held."""
        return not self._left and not self._suspects and not any(self._held)

    def next_for(self, replica: int, window: int) -> list[int]:
        """What a replica is to begin now, beside what it holds; nothing while its window is closed (0)."""
        held = self._held[replica]
        if not window or any(item in self._losses for item in held):
            return []  # a suspect is alone
        share = -(-len(self._left) // len(self._held))
        num = min(window - len(held), max(1, share), len(self._left))
        if num > 0:
            chosen = [self._left.popleft() for _ in range(num)]
        elif not held and not self._left and self._suspects:
            chosen = [self._suspects.popleft()]
        else:
            return []
        held.update(chosen)
        return chosen

    def ended(self, replica: int, item: int) -> None:
        """An item that a replica held is done, well or badly."""
        self._held[replica].remove(item)
        self._losses.pop(item, None)

    def lost(self, replica: int, item: int) -> bool:
        """An item was lost with the replica that held it. Returns whether it is given up: that was so before."""
        self._held[replica].remove(item)
        self._losses[item] = self._losses.get(item, 0) + 1
        if self._losses[item] < MAX_LOSSES:
            self._suspects.append(item)
            return False
        del self._losses[item]
        return True
