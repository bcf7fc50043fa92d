"""Beam search over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import ClassVar

from engine.counts import settle_count
from engine.errors import UserError
from engine.search.draw import STOP_BATCH, StopsWhenSure, growing
from engine.search.vote import check_vote


@dataclass(frozen=True)
class BeamSearch(StopsWhenSure):
    """Keeps the best of all live steps and samples `width` continuations of each.

    With budget N, N first steps are sampled. An answer that ends keeps its slot; the R slots left
    go on from the best ceil(R / width) steps. `max_duplicates` is a floor under their diversity: at
    most this many of the steps kept have the same text as a better one. Raises UserError for a value
    out of range.
    """

    width: int = field(default=4, metadata={"option": "beam_width"})
    """Children of a kept step; 0: the square root of the slots."""

    max_rounds: int = field(default=40, metadata={"option": "num_iterations"})
    """Steps of an answer, at most."""  # what is live after them ends as "length"

    vote: str = "weighted"
    """weighted, naive, majority."""

    max_duplicates: int | None = None
    """Kept steps that may say the same as a better one; by default all."""

    name: ClassVar[str] = "beam"
    scores: ClassVar[str] = "steps"
    is_scored: ClassVar[bool] = True
    stop_at_step: ClassVar[bool] = True
    lookahead: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_count(self, "width", 0, label="beam width")
        settle_count(self, "max_rounds")
        if self.max_duplicates is not None:
            settle_count(self, "max_duplicates", 0)
        check_vote(self.vote)

    def groups(self, budget: int) -> tuple[int, int]:
        """One group with a slot for every generation. Raises UserError for a budget under the width."""
        if self.width > budget:
            raise UserError(f"beam width must be at most the budget of {budget}, got {self.width}")
        return 1, budget

    def parts(self, budget: int) -> list[int]:
        """One search, or beams of growing size where it may stop; the sizes are those of answers and lookahead."""
        if self.stop is None:
            return [budget]
        cost = self.lookahead + 1
        return growing(budget, max(STOP_BATCH, self.width) * cost, cost)

    def select(
        self, agg_scores: Sequence[float], num_slots: int, step_texts: Sequence[str] = ()
    ) -> list[tuple[int, int]]:
        """(index, number of children) of the steps that go on, best first; `num_slots` children at most.

        Equal scores keep their order. The last survivor gets the slots that are left. Where duplicates
        were left out and too few other steps are live, the survivors share all slots evenly.
        """
        ranked = sorted(range(len(agg_scores)), key=lambda index: -agg_scores[index])
        width = self.width or isqrt(num_slots)
        num_kept = -(-num_slots // width) if num_slots else 0
        kept = ranked if self.max_duplicates is None else self._diverse(ranked, step_texts)
        if len(kept) < min(num_kept, len(ranked)):
            each, more = divmod(num_slots, len(kept))
            return [(index, each + (rank < more)) for rank, index in enumerate(kept)]
        return [(index, min(width, num_slots - rank * width)) for rank, index in enumerate(kept[:num_kept])]

    def _diverse(self, ranked: Sequence[int], step_texts: Sequence[str]) -> list[int]:
        """The ranked steps without those that duplicate a better one, but for the first `max_duplicates` of these."""
        assert len(step_texts) == len(ranked), "a diversity floor needs the text of every step"
        seen: set[str] = set()
        kept, num_duplicates = [], 0
        for index in ranked:
            is_duplicate = step_texts[index] in seen
            if is_duplicate and num_duplicates == self.max_duplicates:
                continue
            num_duplicates += is_duplicate
            seen.add(step_texts[index])
            kept.append(index)
        return kept
