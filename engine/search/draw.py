"""When the slots of a budget are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.types import Candidate


@dataclass(frozen=True)
class AllAtOnce:
    """What every strategy but the adaptive one shares: the first round takes the whole budget."""

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """All slots; none are left for a second time."""
        return num_left
