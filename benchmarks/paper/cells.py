"""The searches that are run: one cell is a strategy at a budget with a seed, over all problems."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.paper.settings import CONTEXT, PILOT, WIDTH, Settings
from engine.accounting import Ledger
from engine.config import SearchConfig
from engine.scheduler import ComputeOptimal, Planner, Predictor, calibration_file, strategy_label
from engine.search import (
    DVTS,
    UNWATCHED,
    Answers,
    BeamSearch,
    Lookahead,
    Models,
    Rebase,
    Revisions,
    Strategy,
    Watch,
    run_search,
)
from engine.types import Problem, SearchResult

REVISIONS, BASELINE = "revisions", "policy shown its attempts"
FIRST_PILOTED, LAST_PILOTED = 16, 64  # budgets of searches that go on from a pilot


@dataclass(frozen=True)
class Cell:
    """`series` is the line it belongs to in the tables; `strategy` what runs."""

    series: str
    strategy: Strategy | Planner
    budget: int  # generations per problem
    seed: int
    verifier: str = "prm"
    is_baseline: bool = False  # revisions by the policy itself, which has not learned to revise

    @property
    def is_revision(self) -> bool:
        return self.strategy.name == "revisions"

    @property
    def file_name(self) -> str:
        """The name of its run journal: all that its rows depend on but the models."""
        label = _label(self.strategy)
        label += ":policy" if self.is_baseline else ""
        verifier = "" if self.verifier == "prm" else f"-{self.verifier}"
        return f"{label}{verifier}-{self.budget}-seed{self.seed}.ledger".replace(":", "_")


def _label(strategy: Strategy | Planner) -> str:
    if isinstance(strategy, ComputeOptimal):
        return f"{strategy.name}-{hashlib.sha256(strategy.calibration.to_json().encode()).hexdigest()[:8]}"
    return strategy.label if isinstance(strategy, Piloted) else strategy_label(strategy)


@dataclass(frozen=True)
class Piloted(Planner):
    """A strategy that goes on from the samples of a difficulty pilot, which count in its budget and vote."""

    strategy: Strategy
    predictor: Predictor

    name: ClassVar[str] = "piloted"
    is_scored: ClassVar[bool] = True
    revises: ClassVar[bool] = False
    stop_at_step: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"pilot{self.predictor.num_samples}-{strategy_label(self.strategy)}"

    def groups(self, budget: int) -> tuple[int, int]:
        return self.strategy.groups(budget - self.predictor.num_samples)

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
        start = await self.predictor.sample(problem, models, config, answers, watch)
        return await run_search(
            problem, self.strategy, models, config, answers, ledger=ledger, start=start, watch=watch
        )


def lookahead(num_steps: int) -> Callable[[int], Strategy]:
    """Lookahead by budget; where fewer beams than WIDTH are left, as wide as there are beams."""
    return lambda budget: Lookahead(min(WIDTH, budget // (num_steps + 1)), lookahead=num_steps)


# By value of what they tell: the first are run first. A series is a function of the budget.
SEARCHES: dict[str, Callable[[int], Strategy]] = {
    "beam M=4": lambda budget: BeamSearch(WIDTH),
    "beam M=sqrt(N)": lambda budget: BeamSearch(math.isqrt(budget)),
    "lookahead k=1": lookahead(1),
    "rebase": lambda budget: Rebase(),
    "dvts": lambda budget: DVTS(WIDTH),
    "lookahead k=3": lookahead(3),
    "beam without duplicates": lambda budget: BeamSearch(WIDTH, max_duplicates=0),
}
EXACT_BEAM = "beam M=4, exact verifier"  # what a verifier without a fault would give
SHIPPED = "compute-optimal, shipped calibration"  # `--strategy compute-optimal` as a user has it
SHIPPED_BUDGETS = {16: (16,), 64: (32, 64)}  # where it runs, by the budget of the other searches beside it
LEADING = ("beam M=4", EXACT_BEAM, SHIPPED)  # what most findings are about
PILOTED: dict[str, Strategy] = {
    "pilot, then beam M=4": BeamSearch(WIDTH),
    "pilot, then rebase": Rebase(),
}


def search_cells(settings: Settings) -> list[Cell]:
    """Every cell of searches over steps, most valuable first. A budget of one needs none: it is one sample."""
    cells = []
    for budget in settings.budgets:
        if budget < WIDTH:
            continue
        for seed in seeds_at(settings, budget):
            cells += [Cell(series, make(budget), budget, seed) for series, make in SEARCHES.items()]
            cells.append(Cell(EXACT_BEAM, BeamSearch(WIDTH), budget, seed, verifier="oracle"))
            scheduler = ComputeOptimal(calibration_file("home"))
            cells += [Cell(SHIPPED, scheduler, each, seed) for each in SHIPPED_BUDGETS.get(budget, ())]
            if FIRST_PILOTED <= budget <= LAST_PILOTED:
                pilot = Predictor("agreement", PILOT)
                cells += [Cell(series, Piloted(each, pilot), budget, seed) for series, each in PILOTED.items()]
    return sorted(cells, key=lambda cell: tier(cell, settings))


def revision_cells(settings: Settings, verifier: str) -> list[Cell]:
    """Every ratio of sequential to parallel at 16 and 64, the paper's best region at 256, and the baseline."""
    cells = []
    for budget in settings.budgets:
        ratios = chains_at(budget, settings)
        for seed in seeds_at(settings, budget):
            cells += [Cell(REVISIONS, _chains(count), budget, seed, verifier) for count in ratios]
    largest = min(64, settings.budgets[-1])
    for count in (4, 1) if settings.has_all_ratios else (4,):
        cells.append(Cell(BASELINE, _chains(count), largest, settings.seeds[0], verifier, is_baseline=True))
    return sorted(cells, key=lambda cell: (tier(cell, settings), cell.is_baseline))


def _chains(count: int) -> Revisions:
    return Revisions(parallel=count, context=CONTEXT, judge_alone=True)


def chains_at(budget: int, settings: Settings) -> tuple[int, ...]:
    """Numbers of parallel chains, most parallel first: ratios in factors of 4 from 1:N to N:1.

    Up to 64 generations all of them, or three above 16 where the settings say so. Beyond 64, where each takes minutes,
    1:1 and 4:1 (sequential : parallel), which the paper's figure names as its best region; it is not chosen by our
    results.
    """
    if budget < 16:
        return ()
    if 16 < budget <= 64 and not settings.has_all_ratios:
        return (budget, math.isqrt(budget), 1)
    if budget <= 64:
        return tuple(1 << power for power in range(int(math.log2(budget)), -1, -1))
    return (math.isqrt(budget), math.isqrt(budget) // 2)


def seeds_at(settings: Settings, budget: int) -> tuple[int, ...]:
    is_largest = budget == settings.budgets[-1] and budget > 64
    return settings.seeds[: settings.seeds_at_largest] if is_largest else settings.seeds


def tier(cell: Cell, settings: Settings) -> tuple[int, int]:
    """The leading series: small budgets with all seeds, the next with the first, the largest; revisions; the rest."""
    seed = settings.seeds.index(cell.seed)
    size = 0 if cell.budget <= 16 else 1 if cell.budget <= 64 else 2
    is_first = size == 0 or seed == 0
    if cell.series in LEADING:
        return (size, 0) if is_first else (4, seed)
    if cell.is_revision and size < 2 and is_first:
        return 3, size
    return (5, size) if is_first and size < 2 else (6, seed)


def distinct(cells: list[Cell]) -> Iterator[Cell]:
    """One cell of those that run the same search: two series can meet at a budget."""
    seen: set[str] = set()
    for cell in cells:
        if cell.file_name not in seen:
            seen.add(cell.file_name)
            yield cell
