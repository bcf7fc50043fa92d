"""Steps that stay known to a verifier between searches of the same problems, as the rounds of a batch are."""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.types import Problem, Step
from engine.verifiers.prm import PRMVerifier
from engine.verifiers.spec_verifier import SpecVerifier

_LEAST_FREE = 0.5  # of the pool's blocks: with fewer, nothing is kept any longer


class StepCache:
    """A verifier that shares steps, over a model: what it has read in one search is not read again in the next.

    It holds a fork of every branch that was scored, until `close` or until the KV pool is half full.
    """

    def __init__(self, verifier: PRMVerifier | SpecVerifier):
        self.verifier, self.llm = verifier, verifier.llm
        self.judges = getattr(verifier, "judges", "steps")
        self.reads_history = getattr(verifier, "reads_history", False)
        self._held: list = []
        verifier.shares_roots = True

    async def open(self, problem: Problem, *, ledger: Ledger, **options):
        return await self.verifier.open(problem, ledger=ledger, **options)

    async def score(self, branches: Sequence, steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        scores = await self.verifier.score(branches, steps)
        if self.llm.free_share < _LEAST_FREE:
            self._release()
        else:
            self._held += [fork for branch in branches for fork in branch.fork(1)]
        return scores

    def close(self) -> None:
        """Lets go of all that is kept; the verifier is then as it was."""
        self.verifier.shares_roots = False
        self._release()

    def _release(self) -> None:
        for branch in self._held:
            branch.close()
        self._held.clear()
