"""The compute-optimal strategy of Snell et al. 2024: the best strategy for the difficulty at hand."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from engine.accounting.ledger import Ledger
from engine.config import SearchConfig
from engine.errors import UserError
from engine.scheduler.calibration import Calibration, read_calibration
from engine.scheduler.planner import Planner
from engine.search import UNWATCHED, Answers, Majority, Models, Strategy, Watch, run_search
from engine.search.registry import strategy_label
from engine.types import Problem, SearchResult


class CalibrationWarning(UserWarning):
    """A calibration does not hold for the search at hand."""


@dataclass(frozen=True)
class ComputeOptimal(Planner):
    """Predicts each problem's difficulty and searches it by the strategy that a calibration found best there.

    A re-used pilot is part of the budget and of the vote; its cost is billed as `estimation`.
    `fallback` runs instead, after a warning, where models or settings are not those of the
    calibration. `calibration` may be a file that `ttc calibrate` wrote; raises UserError for one
    that cannot be read.
    """

    calibration: Calibration | str | os.PathLike[str]
    fallback: Strategy = field(default_factory=Majority)

    name: ClassVar[str] = "compute-optimal"

    def __post_init__(self) -> None:
        if not isinstance(self.calibration, Calibration):
            object.__setattr__(self, "calibration", read_calibration(self.calibration))

    @property
    def is_scored(self) -> bool:
        return self.calibration.is_scored

    @property
    def revises(self) -> bool:
        return self.calibration.revises

    @property
    def stop_at_step(self) -> bool:
        return self.calibration.scores_steps

    def groups(self, budget: int) -> tuple[int, int]:
        """Raises UserError for a budget under the pilot's, or that no measured strategy of a bin can spend."""
        num_spent = self.calibration.predictor.num_spent
        if budget < num_spent:
            raise UserError(f"budget must be at least the {num_spent} samples of the difficulty pilot, got {budget}")
        for index in range(self.calibration.bins.count):
            self.calibration.choose(index, budget)
        return 1, budget

    def checked(self, conditions: Mapping[str, object]) -> ComputeOptimal | Strategy:
        """This, or the fallback (and a CalibrationWarning) where the calibration holds for other conditions."""
        if not (differences := self.calibration.differences(conditions)):
            return self
        warnings.warn(
            f"the calibration was made for other models or settings ({'; '.join(differences)}): "
            f"{strategy_label(self.fallback)} runs instead of {self.name}",
            CalibrationWarning,
            stacklevel=2,
        )
        return self.fallback

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
        """Draws the pilot's samples, and searches as is best for the difficulty that they show."""
        calibration, predictor = self.calibration, self.calibration.predictor
        choices = [calibration.choose(index, config.budget).strategy for index in range(calibration.bins.count)]
        needs_scores = predictor.reads_scores or any(choice.is_scored for choice in choices)
        judged = models if needs_scores else replace(models, verifier=None)  # nobody would use the pilot's scores
        samples = await predictor.sample(problem, judged, config, answers, watch)
        ledger = Ledger() if ledger is None else ledger
        if watch.is_over:
            ledger.include(samples.ledger)
            return replace(samples, strategy=self.name, budget=config.budget, ledger=ledger)
        ease = predictor.value(samples, answers.grade)
        index = calibration.bins.index(ease)
        start = samples if predictor.is_reused else None
        if start is None:
            ledger.include(samples.ledger)
        chosen = calibration.stopping(choices[index])
        more = {"ledger": ledger, "start": start, "watch": watch}
        result = await run_search(problem, chosen, models, config, answers, **more)
        label = strategy_label(choices[index])
        plan = f"ease {ease:.3g}, {calibration.bins.describe(index)}: {label}, budget {config.budget}"
        return replace(result, strategy=self.name, plan=plan)
