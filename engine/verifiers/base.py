"""The whole contract of a verifier: the two methods that a search calls, and what a verifier says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from engine.accounting.ledger import Ledger
from engine.types import Attempt, Problem, Step


class VerifierBranch(Protocol):
    """The verifier's side of a policy branch; forks in lockstep with it."""

    def fork(self, num_branches: int) -> list[VerifierBranch]: ...

    def close(self) -> None: ...


class Verifier(ABC):
    """Scores steps or whole answers. A verifier needs `open` and `score`; everything else has a default."""

    judges: str = "steps"
    """What it scores: "steps", or "answers". Then each finished answer is given to it whole, as a single step."""

    reads_history: bool = False
    """Whether it judges a revision knowing the attempts before it."""

    reads_trunk: bool = False
    """Whether its scores come with the sampled steps, from a score head on the trunk of the model that samples."""

    llm: Any = None
    """The model it runs, an `engine.runtime.LLM` that is driven along with the searches; None where it runs none."""

    @property
    def name(self) -> str:
        """As it is shown, and as a calibration names it among its conditions."""
        return type(self).__name__

    @abstractmethod
    async def open(self, problem: Problem, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> VerifierBranch:
        """A branch on which answers to a problem are judged. `ledger` is charged for the verifier's forwards.

        `history` is given only to a verifier with `reads_history`, which alone needs the parameter: the attempts,
        oldest first, that the answer revises. On its branches each answer that has been scored becomes one of them.
        """

    @abstractmethod
    async def score(self, branches: Sequence[VerifierBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """Appends steps to each branch; one score in [0, 1] per step, where NaN flags a numeric failure."""

    def opening(self, problem: Problem) -> list[int]:
        """The token ids with which `llm` opens a branch, so that their number can be checked before a search."""
        return []

    def cached(self) -> AbstractContextManager[Verifier]:
        """A verifier with the same scores that, while the context lasts, reads no step of a problem in two searches.

        By default the verifier itself, where nothing would be saved.
        """
        return nullcontext(self)
