"""Makes a verifier with the whole contract of whatever a user gives; nothing else asks what that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.accounting.ledger import Ledger
from engine.counts import shown
from engine.errors import UserError
from engine.types import Attempt, Problem, Step
from engine.verifiers.base import Verifier, VerifierBranch
from engine.verifiers.callable import CallableVerifier, ScoreFunction


def as_verifier(given: Verifier | ScoreFunction | Any) -> Verifier:
    """A verifier as it is; a function, or an object with `open` and `score`, with the defaults of all else.

    Raises UserError for anything else.
    """
    if isinstance(given, Verifier):
        return given
    if hasattr(given, "score"):
        return AdaptedVerifier(given)
    if not callable(given):
        raise UserError(f"verifier must be a name, a function or an object with the protocol, got {shown(given)}")
    return CallableVerifier(given)


class AdaptedVerifier(Verifier):
    """A user's object with `open` and `score`; it may also have `judges` and `reads_history`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.judges = getattr(inner, "judges", Verifier.judges)
        self.reads_history = getattr(inner, "reads_history", Verifier.reads_history)

    @property
    def name(self) -> str:
        return getattr(self.inner, "__name__", type(self.inner).__name__)

    async def open(self, problem: Problem, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> VerifierBranch:
        if not history:
            return await self.inner.open(problem, ledger=ledger)
        return await self.inner.open(problem, ledger=ledger, history=history)

    async def score(self, branches: Sequence[VerifierBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        return await self.inner.score(branches, steps)
