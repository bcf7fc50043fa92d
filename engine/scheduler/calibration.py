"""A calibration: the measured accuracies of strategies and budgets by difficulty, as one readable file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from engine.errors import UserError
from engine.scheduler.allocation import Curve, concave_envelope
from engine.scheduler.chance import Chances, check_chances, stopping_at
from engine.scheduler.choice import pick
from engine.scheduler.difficulty import Bins, Predictor
from engine.search import Strategy
from engine.search.registry import can_spend, strategy_as_dict, strategy_from_dict, strategy_label

_FORMAT = "ttc calibration 1"


@dataclass(frozen=True)
class Cell:
    """One strategy at one budget on the problems of one difficulty bin."""

    bin: int  # 0 is the easiest
    strategy: Strategy
    budget: int  # generations per problem, those of a re-used pilot included
    num_right: int
    num_problems: int
    generations: float  # mean per problem, spent
    tokens: float  # mean per problem, that went through a model
    flops: float  # mean per problem
    shrunk: float | None = None  # accuracy, drawn towards the strategy's on all bins; None: as it was measured

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_problems

    @property
    def expected(self) -> float:
        """The accuracy that choices go by."""
        return self.accuracy if self.shrunk is None else self.shrunk


@dataclass(frozen=True)
class Verdict:
    """Accuracies at one budget by two-fold cross-validation: chosen on one half, measured on the other.

    Both sides are measured as searches that begin with the pilot (where it is re-used) and pay for it.
    """

    budget: int
    num_problems: int
    compute_optimal: float  # the best strategy of every bin
    best_fixed: float  # one strategy for all bins
    flops: float  # mean per problem, of compute-optimal
    best_fixed_flops: float  # mean per problem


@dataclass(frozen=True)
class Calibration:
    """Measured cells, how a problem finds its difficulty bin, and the conditions they hold under.

    Raises UserError for values that contradict one another.
    """

    conditions: Mapping[str, object]  # models' digests and settings; a search under others may not use it
    problems: str  # on which it was measured
    predictor: Predictor
    bins: Bins
    num_per_bin: tuple[int, ...]
    budgets: tuple[int, ...]  # rising
    cells: tuple[Cell, ...]
    verdicts: tuple[Verdict, ...] = ()  # one per budget
    chances: Chances = ()  # how often answers are right by their score; where there are none, the score is the chance

    def __post_init__(self) -> None:
        if len(self.num_per_bin) != self.bins.count:
            raise UserError(f"{self.bins.count} bins need as many counts of problems, got {list(self.num_per_bin)}")
        if self.predictor.is_probe and not self.predictor.weights:
            raise UserError(f"predictor {self.predictor.name} needs the weights of its probe, got none")
        check_chances(self.chances)
        for index in range(self.bins.count):
            if not any(cell.bin == index for cell in self.cells):
                raise UserError(f"nothing was measured in {self.bins.describe(index)}")
        for cell in self.cells:
            if not 0 <= cell.num_right <= cell.num_problems or cell.num_problems < 1:
                raise UserError(f"{cell.num_right} of {cell.num_problems} problems cannot be right")
            if not 0 <= cell.expected <= 1:
                raise UserError(f"an expected accuracy must be within 0..1, got {cell.expected}")
            if cell.budget not in self.budgets or not 0 <= cell.bin < self.bins.count:
                raise UserError(f"a cell has bin {cell.bin} and budget {cell.budget}, which the calibration lacks")

    @property
    def is_scored(self) -> bool:
        """Whether a search by it needs a verifier."""
        return self.predictor.reads_scores or any(cell.strategy.is_scored for cell in self.cells)

    @property
    def scores_steps(self) -> bool:
        """Whether a search by it may need a verifier that judges steps, not whole answers alone."""
        return any(cell.strategy.is_scored and cell.strategy.stop_at_step for cell in self.cells)

    @property
    def revises(self) -> bool:
        """Whether a search by it needs a reviser."""
        return any(cell.strategy.revises for cell in self.cells)

    def choose(self, bin_index: int, budget: int, num_spent: int | None = None) -> Cell:
        """The cell of the greatest expected accuracy whose strategy can spend what is left of a budget.

        Cells of the largest measured budget that is not above it, else of the smallest. Of those that are as good
        (see `pick`) it is the cheapest. `num_spent` has been spent (by default by the predictor).
        Raises UserError where no strategy can spend it.
        """
        num_spent = self.predictor.num_spent if num_spent is None else num_spent
        measured = max((each for each in self.budgets if each <= budget), default=self.budgets[0])
        cells = [cell for cell in self.cells if cell.bin == bin_index and can_spend(cell.strategy, budget - num_spent)]
        if not cells:
            names = dict.fromkeys(strategy_label(cell.strategy) for cell in self.cells)
            where = f"after the {num_spent} of the prediction" if num_spent else "at once"
            raise UserError(f"none of {', '.join(names)} can spend a budget of {budget} {where}")
        nearest = min((cell.budget for cell in cells), key=lambda each: (abs(each - measured), each))
        return pick((cell, cell.expected, cell.flops) for cell in cells if cell.budget == nearest)

    def stopping(self, strategy: Strategy) -> Strategy:
        """The strategy as it is run: the chance at which it stops is the score of that chance."""
        return stopping_at(strategy, self.chances)

    def curve(self, bin_index: int) -> Curve:
        """Expected accuracy over budget, as the concave envelope that `allocate` takes; 0.0 at a budget of 0."""
        best: dict[int, float] = {0: 0.0}
        for cell in self.cells:
            if cell.bin == bin_index:
                best[cell.budget] = max(best.get(cell.budget, 0.0), cell.expected)
        return concave_envelope(best.items())

    def differences(self, conditions: Mapping[str, object]) -> list[str]:
        """The conditions that do not hold, each as `policy was "a", now "b"`."""
        names = {**self.conditions, **conditions}
        pairs = [(name, self.conditions.get(name), conditions.get(name)) for name in names]
        return [f"{name} was {json.dumps(old)}, now {json.dumps(new)}" for name, old, new in pairs if old != new]

    def to_json(self) -> str:
        """Readable JSON: one cell or verdict per line."""
        head = {
            "format": _FORMAT,
            "conditions": dict(self.conditions),
            "problems": self.problems,
            "predictor": asdict(self.predictor),
            "edges": list(self.bins.edges),
            "num_per_bin": list(self.num_per_bin),
            "budgets": list(self.budgets),
            "chances": [list(pair) for pair in self.chances],
        }
        cells = [
            {**{name: getattr(cell, name) for name in _CELL_FIELDS}, "strategy": strategy_as_dict(cell.strategy)}
            for cell in self.cells
        ]
        parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        for name, rows in (("verdicts", list(map(asdict, self.verdicts))), ("cells", cells)):
            lines = ",\n  ".join(json.dumps(row, allow_nan=False) for row in rows)
            parts.append(f"{json.dumps(name)}: [\n  {lines}\n ]" if rows else f"{json.dumps(name)}: []")
        return "{\n " + ",\n ".join(parts) + "\n}\n"


_CELL_FIELDS = [field.name for field in fields(Cell)]
_FIELDS = ("format", "conditions", "problems", "predictor", "edges", "num_per_bin", "budgets", "verdicts", "cells")


def calibration_file(name: str) -> Path:
    """The file of a calibration; "home" is the shipped one. Raises UserError where that is missing."""
    from engine.model import HOME

    path = HOME / "calibration.json" if name == "home" else Path(name)
    if not path.is_file():
        raise UserError(f"no calibration file at {name!r}: `ttc calibrate --out FILE` measures one")
    return path


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Raises UserError that names the file and what is wrong with it."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            return parse_calibration(file.read())
    except OSError as error:
        raise UserError(f"cannot read a calibration from {name}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{name} is no calibration: {error}") from None


def parse_calibration(text: str | bytes) -> Calibration:
    """Reads what `Calibration.to_json` writes. Raises UserError that says what is wrong."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise UserError(f"not JSON: {text[:40]!r}") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        found = data.get("format") if isinstance(data, dict) else data
        raise UserError(f"its format must be {_FORMAT!r}, got {str(found)[:40]!r}")
    if missing := [name for name in _FIELDS if name not in data]:
        raise UserError(f"it lacks {', '.join(missing)}")
    try:
        return Calibration(
            conditions=dict(data["conditions"]),
            problems=str(data["problems"]),
            predictor=Predictor(**data["predictor"]),
            bins=Bins(tuple(data["edges"])),
            num_per_bin=tuple(data["num_per_bin"]),
            budgets=tuple(sorted(data["budgets"])),
            cells=tuple(_cells(data["cells"])),
            verdicts=tuple(Verdict(**row) for row in data["verdicts"]),
            chances=tuple((score, chance) for score, chance in data.get("chances", ())),
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"a value is missing or of another kind ({error})") from None


def _cells(rows: Sequence[Mapping[str, object]]) -> list[Cell]:
    return [Cell(**{**row, "strategy": strategy_from_dict(row["strategy"])}) for row in rows]
