"""When the slots of a budget are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from engine.types import Candidate


@dataclass(frozen=True)
class AllAtOnce:
    """What most strategies share: the first round takes the whole budget, and nothing is revised."""

    revises: ClassVar[bool] = False
    unused_fields: ClassVar[tuple[str, ...]] = ()

    def rows(self, budget: int) -> int:
        """Branches that are sampled at once, at most."""
        return budget

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """All slots; none are left for a second time."""
        return num_left
