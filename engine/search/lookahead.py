"""Beam search that scores a step by where it leads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.counts import settle_count
from engine.errors import UserError
from engine.search.beam import BeamSearch


@dataclass(frozen=True)
class Lookahead(BeamSearch):
    """A step's score is the verifier's at the end of a greedy rollout of `lookahead` further steps.

    A rollout costs as much as an answer, so budget B runs floor(B / (lookahead + 1)) beams; without
    rollouts this is beam search.
    """

    lookahead: int = 1
    """Greedy steps beyond a step before it is scored."""

    name: ClassVar[str] = "lookahead"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_count(self, "lookahead", 0)

    def groups(self, budget: int) -> tuple[int, int]:
        """One group of beams. Raises UserError where the budget has fewer beams than the width."""
        num_beams = budget // (self.lookahead + 1)
        if self.width > num_beams:
            raise UserError(
                f"beam width must be at most the {num_beams} beams that a budget of {budget} "
                f"runs with lookahead {self.lookahead}, got {self.width}"
            )
        return 1, num_beams
