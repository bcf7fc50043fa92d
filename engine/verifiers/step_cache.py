"""Steps that a verifier remembers from one search of a problem to the next, as in the rounds of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.types import Attempt, Problem, Step
from engine.verifiers.base import Verifier, VerifierBranch

_LEAST_FREE = 0.5  # of the pool's blocks: with fewer, nothing is remembered any longer


class StepCache(Verifier):
    """Over a verifier whose branches share their steps even where they were opened apart.

    It holds a fork of every branch that was scored, until `close` or until the KV pool is half full: what
    has been read in one search is not read again in the next.
    """

    def __init__(self, verifier: Verifier):
        self.verifier, self.llm = verifier, verifier.llm
        self.judges, self.reads_history = verifier.judges, verifier.reads_history
        self._held: list[VerifierBranch] = []

    @property
    def name(self) -> str:
        return self.verifier.name

    def opening(self, problem: Problem) -> list[int]:
        return self.verifier.opening(problem)

    async def open(self, problem: Problem, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> VerifierBranch:
        if not history:
            return await self.verifier.open(problem, ledger=ledger)
        return await self.verifier.open(problem, ledger=ledger, history=history)

    async def score(self, branches: Sequence[VerifierBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        scores = await self.verifier.score(branches, steps)
        if self.llm.free_share < _LEAST_FREE:
            self.close()
        else:
            self._held += [fork for branch in branches for fork in branch.fork(1)]
        return scores

    def close(self) -> None:
        """Forgets all that is remembered."""
        for branch in self._held:
            branch.close()
        self._held.clear()
