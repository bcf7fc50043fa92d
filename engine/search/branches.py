"""The open branches of one search."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeVar

from engine.accounting.ledger import Ledger
from engine.search.protocols import Policy, PolicyBranch
from engine.search.tree import Trajectory
from engine.types import Attempt, Problem
from engine.verifiers.base import Verifier, VerifierBranch

Branch = TypeVar("Branch", PolicyBranch, VerifierBranch)


class OpenBranches:
    """Opens, forks and closes the branches of one search. As a context manager it lets none outlive the search."""

    def __init__(self, problem: Problem, policy: Policy, verifier: Verifier | None, ledger: Ledger) -> None:
        self.problem, self.policy, self.verifier, self.ledger = problem, policy, verifier, ledger
        self._open: dict[int, PolicyBranch | VerifierBranch] = {}

    async def open_policy(self, history: Sequence[Attempt] = ()) -> PolicyBranch:
        """A branch of the policy at the prompt, with earlier attempts before it."""
        return self._add(await self.policy.open(self.problem.asked, ledger=self.ledger, history=history))

    async def open_verifier(self, history: Sequence[Attempt] = ()) -> VerifierBranch:
        """A branch of the verifier at the prompt; a `history` is only for one that reads it."""
        if not history:
            return self._add(await self.verifier.open(self.problem, ledger=self.ledger))
        return self._add(await self.verifier.open(self.problem, ledger=self.ledger, history=history))

    def fork(self, branch: Branch, num_branches: int) -> list[Branch]:
        """`num_branches` children; the branch itself stays open."""
        return [self._add(child) for child in branch.fork(num_branches)]

    def close(self, branch: PolicyBranch | VerifierBranch) -> None:
        del self._open[id(branch)]  # first: a close that raises is not tried again
        branch.close()

    def close_policy(self, trajectory: Trajectory) -> None:
        self.close(trajectory.policy)
        trajectory.policy = None

    def close_verifier(self, trajectory: Trajectory) -> None:
        self.close(trajectory.verifier)
        trajectory.verifier = None

    def release(self, trajectory: Trajectory) -> None:
        """Closes what a trajectory still holds."""
        if trajectory.policy is not None:
            self.close_policy(trajectory)
        if trajectory.verifier is not None:
            self.close_verifier(trajectory)

    def __enter__(self) -> OpenBranches:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes every branch, children before parents, even where one of them raises."""
        with ExitStack() as stack:
            for branch in self._open.values():
                stack.callback(branch.close)
            self._open.clear()

    def _add(self, branch: Branch) -> Branch:
        self._open[id(branch)] = branch
        return branch
