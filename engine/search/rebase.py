"""Reward-balanced search: every live step gets children in proportion to the softmax of its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from engine.counts import check_real, settle_count
from engine.errors import UserError
from engine.search.draw import STOP_BATCH, StopsWhenSure, growing
from engine.search.vote import check_vote


@dataclass(frozen=True)
class Rebase(StopsWhenSure):
    """Shares the slots out by softmax(score / temperature): no fixed width, and the balance is a dial.

    A low temperature gives everything to the best step, a high one the same to all. A step whose
    share rounds to nothing is pruned. Raises UserError for a value out of range.
    """

    temperature: float = field(default=0.2, metadata={"option": "rebase_temperature"})
    """Of the softmax that allots children."""  # over scores in [0, 1]; not that of sampling

    max_rounds: int = field(default=40, metadata={"option": "num_iterations"})
    """Steps of an answer, at most."""  # what is live after them ends as "length"

    vote: str = "weighted"
    """weighted, naive, majority."""

    name: ClassVar[str] = "rebase"
    scores: ClassVar[str] = "steps"
    is_scored: ClassVar[bool] = True
    stop_at_step: ClassVar[bool] = True
    lookahead: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < check_real("rebase temperature", self.temperature) < math.inf:
            raise UserError(f"rebase temperature must be above 0 and finite, got {self.temperature}")
        settle_count(self, "max_rounds")
        check_vote(self.vote)

    def groups(self, budget: int) -> tuple[int, int]:
        """One group with a slot for every generation."""
        return 1, budget

    def parts(self, budget: int) -> list[int]:
        """One search, or trees of growing size where it may stop."""
        return [budget] if self.stop is None else growing(budget, STOP_BATCH)

    def select(
        self, agg_scores: Sequence[float], num_slots: int, step_texts: Sequence[str] = ()
    ) -> list[tuple[int, int]]:
        """(index, number of children) of the steps that go on, best first; all `num_slots` are given out.

        Shares are rounded down, and what is left goes to the largest remainders; equals keep their order.
        """
        if not agg_scores:
            return []
        best = max(agg_scores)
        weights = [math.exp((score - best) / self.temperature) for score in agg_scores]
        total = math.fsum(weights)
        shares = [num_slots * weight / total for weight in weights]
        children = [math.floor(share) for share in shares]
        by_remainder = sorted(range(len(shares)), key=lambda index: children[index] - shares[index])
        for index in by_remainder[: num_slots - sum(children)]:
            children[index] += 1
        ranked = sorted(range(len(agg_scores)), key=lambda index: -agg_scores[index])
        return [(index, children[index]) for index in ranked if children[index]]
