"""Planners: what an engine may be given in the place of a strategy, to decide problem by problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from engine.accounting.ledger import Ledger
from engine.config import SearchConfig
from engine.scheduler.difficulty import Predictor
from engine.search import UNWATCHED, Answers, Models, Strategy, Watch, run_search
from engine.types import Problem, SearchResult


class Planner(ABC):
    """Searches each problem in its own way. Like a strategy it says what it needs before it starts."""

    name: ClassVar[str]
    is_scored: bool  # else no verifier is needed
    revises: bool  # else no reviser is needed
    stop_at_step: bool  # it may choose a strategy that has steps scored

    def rows(self, budget: int) -> int:
        """The most branches of a problem that are sampled at once."""
        return budget

    @abstractmethod
    def groups(self, budget: int) -> tuple[int, int]:
        """Raises UserError for a budget that it cannot spend, as a strategy does."""

    @abstractmethod
    async def search(
        self,
        problem: Problem,
        models: Models,
        config: SearchConfig,
        answers: Answers,
        *,
        ledger: Ledger | None = None,
        watch: Watch = UNWATCHED,
    ) -> SearchResult:
        """Searches one problem; arguments as for `run_search`, whose strategy and start are the planner's choice."""


@dataclass(frozen=True)
class Assignment:
    """The strategy and the budget that one problem is given."""

    strategy: Strategy
    budget: int  # includes what `start` spent
    start: SearchResult | None = None  # an earlier search to go on from


@dataclass(frozen=True)
class Assigned(Planner):
    """Gives every problem what was decided for it before."""

    assignments: Mapping[str, Assignment]  # by the problem's id

    name: ClassVar[str] = "planned"

    @property
    def is_scored(self) -> bool:
        return any(each.strategy.is_scored for each in self.assignments.values())

    @property
    def revises(self) -> bool:
        return any(each.strategy.revises for each in self.assignments.values())

    @property
    def stop_at_step(self) -> bool:
        return any(each.strategy.is_scored and each.strategy.stop_at_step for each in self.assignments.values())

    def rows(self, budget: int) -> int:
        return max((each.strategy.rows(each.budget) for each in self.assignments.values()), default=budget)

    def groups(self, budget: int) -> tuple[int, int]:
        """Raises ValueError for an assignment over the budget, which is what the engine makes room for."""
        most = max((each.budget for each in self.assignments.values()), default=1)
        if most > budget:
            raise ValueError(f"a plan spends {most} generations, over the budget of {budget}")
        return 1, budget

    async def search(
        self,
        problem: Problem,
        models: Models,
        config: SearchConfig,
        answers: Answers,
        *,
        ledger: Ledger | None = None,
        watch: Watch = UNWATCHED,
    ) -> SearchResult:
        given = self.assignments[problem.id]
        config = replace(config, budget=given.budget)
        more = {"ledger": ledger, "start": given.start, "watch": watch}
        return await run_search(problem, given.strategy, models, config, answers, **more)


@dataclass(frozen=True)
class PilotSamples(Planner):
    """Draws the samples that a predictor predicts difficulty from, and nothing else."""

    predictor: Predictor
    is_judged: bool  # a search will go on from the samples and needs their scores
    revises: bool = False  # such a search may need the reviser: what is measured with one holds for it alone

    name: ClassVar[str] = "samples"
    stop_at_step: ClassVar[bool] = False

    @property
    def is_scored(self) -> bool:
        return self.is_judged or self.predictor.reads_scores

    def groups(self, budget: int) -> tuple[int, int]:
        return 1, self.predictor.num_samples

    async def search(
        self,
        problem: Problem,
        models: Models,
        config: SearchConfig,
        answers: Answers,
        *,
        ledger: Ledger | None = None,
        watch: Watch = UNWATCHED,
    ) -> SearchResult:
        """The samples; all that they cost is in the result's own ledger, and nothing is charged to `ledger`."""
        if not self.is_scored:
            models = replace(models, verifier=None)
        return await self.predictor.sample(problem, models, config, answers, watch)
