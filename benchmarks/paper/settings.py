"""What is run: how many problems, seeds and budgets, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import UserError

PILOT = 4  # samples of the cheap difficulty predictor, re-used in the vote
WIDTH = 4  # M of the beams, as in the paper
CONTEXT = 2  # attempts before a revision: the paper has 4; the shipped reviser was trained on one, mostly
BINS_STREAM = "bins"  # the pool that sets the difficulty bins; the other one is "answers"


@dataclass(frozen=True)
class Settings:
    """Raises UserError for what cannot be run, with the value received."""

    work: Path
    num_problems: int = 500  # the first of the test split
    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[int, ...] = (1, 4, 16, 64, 256)  # generations per problem
    seeds_at_largest: int = 1  # seeds of a search at the largest budget; pools have all of them
    num_bin_samples: int = 256  # per problem, for the bins alone
    reviser: str | None = None  # folder; None: the shipped one
    large: str | None = None  # folder of a larger policy; none: no exchange
    has_all_ratios: bool = True  # of revisions at 64; else both ends, the middle, and one baseline

    def __post_init__(self) -> None:
        for name in ("num_problems", "seeds_at_largest", "num_bin_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] != 1:
            raise UserError(f"budgets must rise from 1, got {list(self.budgets)}")
        for small in self.budgets:
            if self.budgets[-1] % small:
                raise UserError(f"every budget must divide the largest, {self.budgets[-1]}, got {small}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds must be distinct, got {list(self.seeds)}")

    @property
    def pool_size(self) -> int:
        """Answers per problem and seed: the largest budget, of which the smaller ones take the first."""
        return self.budgets[-1]

    def quick(self) -> Settings:
        """50 problems, one seed, pools of 64, three ratios of revisions at 64: some minutes on two cores."""
        budgets = tuple(budget for budget in self.budgets if budget <= 64)
        num_problems = min(self.num_problems, 50)
        few = {"num_problems": num_problems, "seeds": self.seeds[:1], "budgets": budgets, "num_bin_samples": 64}
        return replace(self, **few, has_all_ratios=False)
