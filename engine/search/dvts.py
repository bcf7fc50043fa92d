"""Diverse verifier tree search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from engine.counts import settle_count
from engine.errors import UserError
from engine.search.beam import BeamSearch
from engine.types import Candidate


@dataclass(frozen=True)
class DVTS(BeamSearch):
    """budget / width independent beam searches of `width` slots each, and one vote over all of them."""

    name: ClassVar[str] = "dvts"
    unused_fields: ClassVar[tuple[str, ...]] = ("max_duplicates",)

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_count(self, "width", label="beam width")
        if self.max_duplicates is not None:
            raise UserError(
                f"max_duplicates has no effect with dvts, which keeps one step of a subtree, got {self.max_duplicates}"
            )

    def groups(self, budget: int) -> tuple[int, int]:
        """The subtrees and their slots. Raises UserError for a budget that the width does not divide."""
        if budget % self.width:
            raise UserError(f"dvts needs a budget that its width of {self.width} divides, got {budget}")
        return budget // self.width, self.width

    def parts(self, budget: int) -> list[int]:
        """One search: its subtrees may be drawn one after another."""
        return [budget]

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """All subtrees, or the next one of a search that may stop."""
        return num_left if self.stop is None else self.width
