"""Chooses questions by how often the policy solves them, and orders them from short answers to long ones.

A question that is always or never solved teaches a verifier little: all of its answers have one label.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import UserError


@dataclass(frozen=True)
class PassBounds:
    """The shares of right samples of the questions that are kept, both included."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> PassBounds:
        """From LOW:HIGH. Raises UserError."""
        try:
            low, high = map(float, text.split(":"))
        except ValueError:
            raise UserError(f"pass_rate must be LOW:HIGH, such as 0.05:0.6, got {text!r}") from None
        if not 0 <= low <= high <= 1:
            raise UserError(f"pass_rate needs 0 <= LOW <= HIGH <= 1, got {text!r}")
        return cls(low, high)

    def __contains__(self, share: float) -> bool:
        return self.low <= share <= self.high


class Selection:
    """The first `num_wanted` questions, in their order, whose rows have a `pass_rate` within bounds.

    Questions may be tried in any order, and by several processes: which ones are chosen does not depend on it.
    """

    def __init__(self, bounds: PassBounds, num_wanted: int):
        self.bounds, self.num_wanted = bounds, num_wanted
        self._kept: list[int] = []  # positions, ascending

    def add(self, position: int, row: Mapping) -> bool:
        """Takes the row of a question that has been tried; whether it is kept."""
        is_kept = row["pass_rate"] is not None and row["pass_rate"] in self.bounds  # None: it failed
        if is_kept:
            insort(self._kept, position)
        return is_kept

    def needs(self, position: int) -> bool:
        """Whether the question may be among those that are chosen, after what is known of the others."""
        return bisect_left(self._kept, position) < self.num_wanted

    @property
    def num_kept(self) -> int:
        return min(len(self._kept), self.num_wanted)

    def chosen(self, rows: Mapping[int, Mapping]) -> list[int]:
        """The positions of the chosen ones, those with the shortest answers first."""
        return sorted(self._kept[: self.num_wanted], key=lambda position: (rows[position]["mean_tokens"], position))

    def summary(self, rows: Mapping[int, Mapping]) -> str:
        """How many were tried for them, and where these are fewer than wanted why, and what helps."""
        if self.num_kept == self.num_wanted:
            return f"kept of {self._kept[self.num_wanted - 1] + 1} tried"
        shares = [row["pass_rate"] for row in rows.values() if row["pass_rate"] is not None]
        num_below = sum(share < self.bounds.low for share in shares)
        num_above = sum(share > self.bounds.high for share in shares)
        return (
            f"kept of {len(shares)} tried, {self.num_wanted} wanted: {num_below} are solved less often than in "
            f"{self.bounds.low:g} of the samples, {num_above} more often than in {self.bounds.high:g} "
            "(widen --pass-rate, raise --max-tries or name more questions)"
        )
