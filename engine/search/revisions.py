"""Sequential revisions: chains of whole attempts, each sampled with those before it in the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from engine.counts import settle_count
from engine.errors import UserError
from engine.search.best_of_n import WholeAnswers
from engine.search.draw import StopsWhenSure
from engine.search.vote import REVISION_VOTES, check_vote
from engine.types import Candidate


@dataclass(frozen=True)
class Revisions(StopsWhenSure, WholeAnswers):
    """`parallel` chains of budget / parallel attempts each (Snell et al. 2024, section 6); every attempt votes.

    The model that revises samples an attempt with the last `context` attempts of its chain before it. An attempt
    that was cut off, failed or has no text takes its slot, but later attempts are not shown it. A search that goes
    on from an earlier one starts new chains; the earlier candidates vote too. Raises UserError for a value out of
    range.
    """

    parallel: int = 4
    """Chains of revisions; each gets its share of the budget."""

    context: int = 4
    """Earlier attempts that a revision is shown, at most."""

    vote: str = "hierarchical"
    """hierarchical (inside each chain, then over the chains), weighted, naive, majority."""

    judge_alone: bool = False
    """Show the ORM no attempts before the one it judges."""

    name: ClassVar[str] = "revisions"
    revises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_count(self, "parallel")
        settle_count(self, "context")
        if not isinstance(self.judge_alone, bool):
            raise UserError(f"judge_alone must be true or false, got {self.judge_alone!r}")
        check_vote(self.vote, REVISION_VOTES)

    @property
    def is_scored(self) -> bool:
        """Whether a verifier is needed: a majority vote needs no score."""
        return self.vote != "majority"

    def groups(self, budget: int) -> tuple[int, int]:
        """The chains and their attempts. Raises UserError for a budget that `parallel` does not divide."""
        if budget % self.parallel:
            raise UserError(f"revisions need a budget that its {self.parallel} parallel chains divide, got {budget}")
        return self.parallel, budget // self.parallel

    def rows(self, budget: int) -> int:
        """One attempt of every chain at a time."""
        return self.parallel

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """The next attempt of every chain."""
        return self.parallel
