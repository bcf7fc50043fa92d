"""The verifier that is a head on the policy's own trunk: its scores come with the steps."""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting.ledger import Ledger
from engine.errors import UserError
from engine.types import Problem, Step
from engine.verifiers.base import Verifier


class TrunkBranch:
    """Holds nothing: the policy's branch holds the KV."""

    def fork(self, num_branches: int) -> list[TrunkBranch]:
        return [TrunkBranch() for _ in range(num_branches)]

    def close(self) -> None:
        """Nothing to give back."""


class TrunkVerifier(Verifier):
    """Reads `Step.trunk_score`. The decode pass has paid for it, so nothing is charged here."""

    reads_trunk = True

    async def open(self, problem: Problem, *, ledger: Ledger) -> TrunkBranch:
        return TrunkBranch()

    async def score(self, branches: Sequence[TrunkBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """Raises UserError for a step without a score: the policy has no trunk head."""
        for new_steps in steps:
            for step in new_steps:
                if step.trunk_score is None:
                    raise UserError(f"the policy gave step {step.text[:40]!r} no trunk score: no trunk head is loaded")
        return [[step.trunk_score for step in new_steps] for new_steps in steps]
