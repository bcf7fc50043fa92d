"""A verifier that is any Python function.

It charges nothing to the ledger, neither tokens as "verified" nor FLOPs: the cost of a function is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from engine.accounting.ledger import Ledger
from engine.counts import shown
from engine.errors import UserError
from engine.types import Problem, Step
from engine.verifiers.base import Verifier

ScoreFunction = Callable[[str, list[str]], float]


class TextBranch:
    """The texts of the steps so far, each with its delimiter."""

    def __init__(self, problem: Problem, steps: tuple[str, ...] = ()) -> None:
        self.problem = problem
        self.steps = steps
        self._is_open = True

    def fork(self, num_branches: int) -> list[TextBranch]:
        """Raises UserError once closed."""
        self._check_open()
        return [TextBranch(self.problem, self.steps) for _ in range(num_branches)]

    def append(self, step: Step) -> list[str]:
        """The steps with one more. Raises UserError once closed."""
        self._check_open()
        self.steps = (*self.steps, step.text)
        return list(self.steps)

    def close(self) -> None:
        """Raises UserError the second time."""
        self._check_open()
        self._is_open = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise UserError(f"this verifier branch of problem {self.problem.id!r} is closed")


class CallableVerifier(Verifier):
    """Scores by `function(prompt, steps) -> float`, the score in [0, 1] of the last of the steps.

    It is called once for every step, in order, with the texts of all steps up to it, delimiters
    included. NaN or an infinity flags a step that could not be scored. Raises UserError for
    any other value outside [0, 1], or for what is not a number.
    """

    def __init__(self, function: ScoreFunction) -> None:
        self.function = function

    @property
    def name(self) -> str:
        """The function's own."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    async def open(self, problem: Problem, *, ledger: Ledger) -> TextBranch:
        return TextBranch(problem)

    async def score(self, branches: Sequence[TextBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        return [
            [self._score(branch.problem, branch.append(step)) for step in new_steps]
            for branch, new_steps in zip(branches, steps, strict=True)
        ]

    def _score(self, problem: Problem, steps: list[str]) -> float:
        value = self.function(problem.prompt, steps)
        try:
            score = float(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"a verifier function must return a number, got {shown(value)}") from None
        if math.isfinite(score) and not 0 <= score <= 1:
            raise UserError(f"a verifier function must return a score within [0, 1], got {score}")
        return score
