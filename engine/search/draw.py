"""When answers are drawn: by default all at once, and no more of them once the verifier is sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from engine.counts import check_real
from engine.errors import UserError
from engine.types import Candidate

STOP_BATCH = 4  # answers before the first look at whether the verifier is sure; of whole answers between any two
_GROWTH = 4  # by which a tree of a search that may stop takes it further than those before


@dataclass(frozen=True)
class AllAtOnce:
    """Base of most strategies: the first round takes the whole budget, and nothing is revised."""

    revises: ClassVar[bool] = False
    unused_fields: ClassVar[tuple[str, ...]] = ()
    stop: ClassVar[float | None] = None

    def rows(self, budget: int) -> int:
        """The most branches that are sampled at once."""
        return budget

    def parts(self, budget: int) -> list[int]:
        """The budgets of the searches that follow one another until one of them is sure: a single one."""
        return [budget]

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """All slots; none are left for a second time."""
        return num_left


@dataclass(frozen=True)
class StopsWhenSure(AllAtOnce):
    """Base of the strategies that are scored: they may end before the budget does.

    With `stop` a search ends once the answer that leads the vote has a candidate whose aggregated score is that high;
    what is live is closed, and what was not drawn is not spent. By a calibration, which has measured how often such
    scores are right, `stop` is that chance; without one the score itself is taken for it. Raises UserError for a
    value out of range, or where nothing is scored.
    """

    stop: float | None = field(default=None, kw_only=True)
    """Chance that the leading answer is right at which a search ends early; without a calibration its raw score."""

    def __post_init__(self) -> None:
        if self.stop is None:
            return
        if not 0 < check_real("stop", self.stop) <= 1:
            raise UserError(f"stop must be above 0 and at most 1, got {self.stop}")
        if not self.is_scored:
            raise UserError(f"stop has no effect with this {self.name}, which scores nothing, got {self.stop}")


def growing(budget: int, least: int, unit: int = 1) -> list[int]:
    """Parts of a budget, each three times all before it, from the first that is not below `least` on.

    All but the last are multiples of `unit`.
    """
    ends = [budget]
    while (end := ends[-1] // _GROWTH // unit * unit) >= max(1, least):
        ends.append(end)
    ends.append(0)
    return [end - before for end, before in zip(ends[-2::-1], ends[:0:-1], strict=True)]
