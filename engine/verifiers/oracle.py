"""The verifier that knows which steps are right, for measuring what a perfect one would be worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.accounting.ledger import Ledger
from engine.types import Problem, Step
from engine.verifiers.base import Verifier
from engine.verifiers.callable import TextBranch


class OracleVerifier(Verifier):
    """1.0 as long as `is_right(problem, steps)` holds, exactly 0.0 from the first wrong step on.

    `steps` are the texts so far, delimiters included. A step after a wrong one is not looked at.
    Like any function it charges nothing to the ledger.
    """

    def __init__(self, is_right: Callable[[Problem, list[str]], bool]) -> None:
        self.is_right = is_right

    @classmethod
    def from_first_wrong_step(cls, first_wrong_step: Callable[[Problem, list[str]], int]) -> OracleVerifier:
        """An oracle over a function that gives the index of the first wrong step, or -1 where there is none."""
        return cls(lambda problem, steps: first_wrong_step(problem, steps) < 0)

    async def open(self, problem: Problem, *, ledger: Ledger) -> OracleBranch:
        return OracleBranch(problem)

    async def score(self, branches: Sequence[OracleBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        return [
            [self._score(branch, step) for step in new_steps] for branch, new_steps in zip(branches, steps, strict=True)
        ]

    def _score(self, branch: OracleBranch, step: Step) -> float:
        texts = branch.append(step)
        branch.is_right = branch.is_right and bool(self.is_right(branch.problem, texts))
        return 1.0 if branch.is_right else 0.0


class OracleBranch(TextBranch):
    """A text branch that remembers whether a step was wrong."""

    is_right = True

    def fork(self, num_branches: int) -> list[OracleBranch]:
        self._check_open()
        children = [OracleBranch(self.problem, self.steps) for _ in range(num_branches)]
        for child in children:
            child.is_right = self.is_right
        return children
