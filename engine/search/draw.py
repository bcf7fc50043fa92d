"""The default of strategies: all slots of a budget are drawn at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from engine.types import Candidate


@dataclass(frozen=True)
class AllAtOnce:
    """Base of most strategies: the first round takes the whole budget, and nothing is revised."""

    revises: ClassVar[bool] = False
    unused_fields: ClassVar[tuple[str, ...]] = ()

    def rows(self, budget: int) -> int:
        """The most branches that are sampled at once."""
        return budget

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """All slots; none are left for a second time."""
        return num_left
