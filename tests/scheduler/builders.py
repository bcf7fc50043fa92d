"""Problems of known difficulty without models, and calibrations made by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.scheduler import Bins, Calibration, Cell, Planner, Predictor
from engine.search import Majority, Models, Strategy
from engine.types import Problem, SearchResult
from tests.search.fakes import FakePolicy, FakeVerifier, arguments, drive, hashed_judge, start


def problem_of(percent: int, name: str = "p") -> Problem:
    """A problem whose answers are right, "1", in about so many per cent of the samples."""
    return Problem(f"{name}{percent}", str(percent), answer="1")


class ProblemPolicy(FakePolicy):
    """One line per answer, right as often as the prompt of the problem says."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.percent = 0

    async def open(self, prompt, *, ledger, history=()):
        self.percent = int(prompt)
        return await super().open(prompt, ledger=ledger, history=history)

    def answer(self, key, text, new_text):
        rng = random.Random(f"{key}/{text}")
        return "1" if 100 * rng.random() < self.percent else str(rng.randint(2, 9))


def plan(planner: Planner, problem: Problem, budget: int, verifier=None, **options) -> SearchResult:
    """One problem by a planner, on fakes that end with nothing open."""
    policy = ProblemPolicy()
    verifier = verifier or FakeVerifier(hashed_judge)
    config, answers = arguments(budget=budget, **options)
    result = drive(planner.search(problem, Models(policy, verifier), config, answers))
    assert (policy.num_open, verifier.num_open) == (0, 0)
    return result


def plan_all(problems: Sequence[Problem], planner: Planner, budget: int) -> list[SearchResult]:
    """What `search_batch` is given: a whole engine's search, one problem after the other."""
    planner.groups(budget)
    return [plan(planner, problem, budget) for problem in problems]


def sampled(strategy: Strategy, problem: Problem, budget: int) -> SearchResult:
    """A plain search of one problem."""
    policy, verifier = ProblemPolicy(), FakeVerifier(hashed_judge)
    return drive(start(strategy, policy, verifier, problem=problem, budget=budget))


def cell(bin_index: int, strategy: Strategy, budget: int, num_right: int, flops: float = 1.0) -> Cell:
    """`num_right` of 100 problems."""
    return Cell(bin_index, strategy, budget, num_right, 100, float(budget), 10.0 * budget, flops)


def calibration(cells: Sequence[Cell], edges: Sequence[float] = (), predictor: Predictor | None = None) -> Calibration:
    bins = Bins(tuple(edges))
    return Calibration(
        conditions={"policy": "abc", "temperature": 1.0},
        problems="a hundred problems",
        predictor=predictor or Predictor(num_samples=4),
        bins=bins,
        num_per_bin=(100,) * bins.count,
        budgets=tuple(sorted({each.budget for each in cells})),
        cells=tuple(cells),
    )


def majority_curve(bin_index: int, accuracies: dict[int, int]) -> list[Cell]:
    return [cell(bin_index, Majority(), budget, right) for budget, right in accuracies.items()]
