"""Parallel sampling that stops when the vote is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from engine.counts import check_real, settle_count
from engine.errors import UserError
from engine.search.best_of_n import WholeAnswers
from engine.search.draw import StopsWhenSure
from engine.search.vote import check_vote, vote, voters_by_answer
from engine.types import Candidate

ADAPTIVE_VOTES = ("weighted", "majority")
_MAX_SCORE = 1.0  # of a verifier, and the weight of an answer in a majority vote


@dataclass(frozen=True)
class Adaptive(StopsWhenSure, WholeAnswers):
    """Best-of-N in batches, up to the budget; what an early stop saves is not spent.

    With `confidence` 1.0 it stops when no other answer can overtake the leader any more, so that the
    answer is that of the whole budget. Below 1.0 it stops as soon as the leader is the more likely of
    the two best answers with that probability: P(p > 1/2), p ~ Beta(1 + leader's weight, 1 + runner-up's
    weight). A weight is a count, or the sum of scores where the vote is weighted.
    Raises UserError for a value out of range.
    """

    vote: str = "weighted"
    """weighted; or majority, which scores nothing."""

    batch: int = field(default=4, metadata={"option": "adaptive_batch"})
    """Answers before the vote is looked at again."""

    confidence: float = 1.0
    """At which adaptive stops; 1: no answer can overtake the leader."""

    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_vote(self.vote)
        if self.vote not in ADAPTIVE_VOTES:
            raise UserError(f"adaptive votes are {' and '.join(ADAPTIVE_VOTES)}, got {self.vote!r}")
        settle_count(self, "batch", label="adaptive batch")
        if not 0.5 < check_real("confidence", self.confidence) <= 1:
            raise UserError(f"confidence must be above 0.5 and at most 1, got {self.confidence}")

    @property
    def is_scored(self) -> bool:
        return self.vote != "majority"

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """One more batch, or 0 once the vote is decided."""
        return 0 if self.is_decided(candidates, num_left) else min(self.batch, num_left)

    def is_decided(self, candidates: Sequence[Candidate], num_left: int) -> bool:
        """Whether `num_left` more answers cannot, or with `confidence` will not, change the vote."""
        leader, _ = vote(candidates, self.vote)
        if leader is None:
            return False
        weights = self._weights(candidates)
        ahead = math.fsum(weights[leader])
        if self.confidence < 1:
            behind = max((math.fsum(w) for answer, w in weights.items() if answer != leader), default=0.0)
            return probability_ahead(ahead, behind) >= self.confidence
        is_earlier = True  # than the leader: such an answer wins a tie, which a later one or a new one does not
        for answer, rival in weights.items():
            if answer == leader:
                is_earlier = False
                continue
            reach = math.fsum(rival + [_MAX_SCORE] * num_left)
            if reach > ahead or (is_earlier and reach == ahead):
                return False
        return num_left * _MAX_SCORE <= ahead

    def _weights(self, candidates: Sequence[Candidate]) -> dict[str, list[float]]:
        """The weights of each answer's candidates."""
        return {
            answer: [candidates[index].agg_score if self.is_scored else _MAX_SCORE for index in indices]
            for answer, indices in voters_by_answer(candidates).items()
        }


def probability_ahead(ahead: float, behind: float) -> float:
    """P(p > 1/2) where p ~ Beta(1 + ahead, 1 + behind): a uniform prior, `ahead` votes against `behind`."""
    return 1.0 - _beta_below_half(1.0 + ahead, 1.0 + behind)


def _beta_below_half(a: float, b: float) -> float:
    """The regularised incomplete beta function I_{1/2}(a, b), by its continued fraction (Lentz)."""
    if a < b:  # the fraction converges fast where 1/2 is below the mean
        return 1.0 - _beta_below_half(b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - (a + b) * math.log(2.0)) / a
    tiny, x = 1e-300, 0.5
    value, c, d = 1.0, 1.0, 0.0
    for i in range(4000):
        m = i // 2
        if i == 0:
            numerator = 1.0
        elif i % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / (1.0 + numerator * d or tiny)
        c = 1.0 + numerator / c or tiny
        value *= c * d
        if i and abs(c * d - 1.0) < 1e-13:
            break
    return front * (value - 1.0)
