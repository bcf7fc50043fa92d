"""Planners: what an engine may be given in the place of a strategy, to decide problem by problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from engine.scheduler.difficulty import Predictor
from engine.search import Policy, Strategy, Verifier, run_search
from engine.types import Problem, SearchResult


class Planner(ABC):
    """Searches each problem in its own way. Like a strategy it says what it needs before it starts."""

    name: ClassVar[str]
    is_scored: bool  # else no verifier is needed
    revises: bool  # else no reviser is needed
    stop_at_step: bool  # it may choose a strategy that has steps scored

    def rows(self, budget: int) -> int:
        """Branches of a problem that are sampled at once, at most."""
        return budget

    @abstractmethod
    def groups(self, budget: int) -> tuple[int, int]:
        """Raises UserError for a budget that it cannot spend, as a strategy does."""

    @abstractmethod
    async def search(
        self, problem: Problem, *, policy: Policy, verifier: Verifier | None, budget: int, **options
    ) -> SearchResult:
        """One problem; `options` are those of `run_search`."""


@dataclass(frozen=True)
class Plan:
    """What one problem is given."""

    strategy: Strategy
    budget: int  # what `start` spent included
    start: SearchResult | None = None  # to go on from


@dataclass(frozen=True)
class Assigned(Planner):
    """A plan for every problem, by its id."""

    plans: Mapping[str, Plan]

    name: ClassVar[str] = "planned"

    @property
    def is_scored(self) -> bool:
        return any(plan.strategy.is_scored for plan in self.plans.values())

    @property
    def revises(self) -> bool:
        return any(plan.strategy.revises for plan in self.plans.values())

    @property
    def stop_at_step(self) -> bool:
        return any(plan.strategy.is_scored and plan.strategy.stop_at_step for plan in self.plans.values())

    def rows(self, budget: int) -> int:
        return max((plan.strategy.rows(plan.budget) for plan in self.plans.values()), default=budget)

    def groups(self, budget: int) -> tuple[int, int]:
        """Raises ValueError for a plan over the budget, which is what the engine makes room for."""
        most = max((plan.budget for plan in self.plans.values()), default=1)
        if most > budget:
            raise ValueError(f"a plan spends {most} generations, over the budget of {budget}")
        return 1, budget

    async def search(self, problem, *, policy, verifier, budget, **options) -> SearchResult:
        plan = self.plans[problem.id]
        judge = verifier if plan.strategy.is_scored else None
        return await run_search(problem, plan.strategy, policy, judge, budget=plan.budget, start=plan.start, **options)


@dataclass(frozen=True)
class Sampled(Planner):
    """The samples of a predictor and nothing else; `is_judged` where a search will go on from them.

    `revises` says that such a search may need the reviser: what is measured with it holds for that one alone.
    """

    predictor: Predictor
    is_judged: bool
    revises: bool = False

    name: ClassVar[str] = "samples"
    stop_at_step: ClassVar[bool] = False

    @property
    def is_scored(self) -> bool:
        return self.is_judged or self.predictor.name == "score"

    def groups(self, budget: int) -> tuple[int, int]:
        return 1, self.predictor.num_samples

    async def search(self, problem, *, policy, verifier, budget, **options) -> SearchResult:
        return await self.predictor.sample(problem, policy, verifier if self.is_scored else None, **options)
