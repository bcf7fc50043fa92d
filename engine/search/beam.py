"""Beam search over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from engine.search.vote import check_vote


@dataclass(frozen=True)
class BeamSearch:
    """Keeps the best of all live steps and samples `width` continuations of each.

    With budget N, N first steps are sampled. An answer that ends keeps its slot; the R slots left
    go on from the best ceil(R / width) steps. Raises ValueError for a value out of range.
    """

    width: int = 4  # M: children of a kept step
    max_rounds: int = 40  # steps of an answer; what is live after them ends as "length"
    vote: str = "weighted"  # or "naive", "majority"

    name: ClassVar[str] = "beam"
    is_scored: ClassVar[bool] = True
    stop_at_step: ClassVar[bool] = True
    lookahead: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"beam width must be at least 1, got {self.width}")
        if self.max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, got {self.max_rounds}")
        check_vote(self.vote)

    def groups(self, budget: int) -> tuple[int, int]:
        """One group with a slot for every generation. Raises ValueError for a budget under the width."""
        if self.width > budget:
            raise ValueError(f"beam width must be at most the budget of {budget}, got {self.width}")
        return 1, budget

    def select(self, agg_scores: Sequence[float], num_slots: int) -> list[tuple[int, int]]:
        """(index, number of children) of the steps that go on, best first; `num_slots` children at most.

        Equal scores keep their order. The last survivor gets the slots that are left.
        """
        ranked = sorted(range(len(agg_scores)), key=lambda index: -agg_scores[index])
        num_kept = -(-num_slots // self.width)
        return [(index, min(self.width, num_slots - rank * self.width)) for rank, index in enumerate(ranked[:num_kept])]
