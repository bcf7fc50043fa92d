"""Parallel sampling: whole answers, and a vote over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from engine.search.draw import STOP_BATCH, AllAtOnce, StopsWhenSure
from engine.search.vote import check_vote
from engine.types import Candidate


@dataclass(frozen=True)
class WholeAnswers(AllAtOnce):
    """Base of the parallel strategies: one round, in which every slot samples a whole answer."""

    scores: ClassVar[str] = "answers"
    stop_at_step: ClassVar[bool] = False
    max_rounds: ClassVar[int] = 1
    lookahead: ClassVar[int] = 0

    def groups(self, budget: int) -> tuple[int, int]:
        """One group with a slot for every generation."""
        return 1, budget

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """All answers, or a batch of those of a search that may stop."""
        return num_left if self.stop is None else min(STOP_BATCH, num_left)

    def select(
        self, agg_scores: Sequence[float], num_slots: int, step_texts: Sequence[str] = ()
    ) -> list[tuple[int, int]]:
        """Nobody goes on after the only round."""
        return []


@dataclass(frozen=True)
class Majority(WholeAnswers):
    """The most frequent answer. Nothing is scored, and a verifier is not needed."""

    name: ClassVar[str] = "majority"
    vote: ClassVar[str] = "majority"
    scores: ClassVar[str] = "nothing"
    is_scored: ClassVar[bool] = False


@dataclass(frozen=True)
class BestOfN(StopsWhenSure, WholeAnswers):
    """Full answers, scored once at their end. Raises UserError for an unknown vote."""

    vote: str = "weighted"
    """weighted, naive, majority."""

    name: ClassVar[str] = "best-of-n"
    is_scored: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_vote(self.vote)
