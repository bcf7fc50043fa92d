"""Scores a step by where it leads: greedy rollouts on forks, which never join the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.keys import branch_key
from engine.search.protocols import Policy, PolicyBranch, Verifier
from engine.search.tree import OpenBranches, Trajectory, is_judged
from engine.types import GREEDY, Step


@dataclass
class _Rollout:
    """The greedy continuation that shows where a trajectory leads."""

    of: Trajectory
    policy: PolicyBranch
    num_tokens: int  # of the completion, the rollout included
    steps: list[Step] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        return not self.steps or self.steps[-1].finish == "step"


@dataclass(frozen=True)
class GreedyRollouts:
    """Rolls trajectories of one problem's search out."""

    policy: Policy
    verifier: Verifier
    branches: OpenBranches
    problem_id: str
    seed: int
    max_tokens: int  # of a whole completion

    async def rescore(self, children: Sequence[Trajectory], num_steps: int) -> None:
        """Puts in the place of each child's last new score the score after `num_steps` greedy steps.

        Rollouts run on forks, which are closed; their steps never join the answer. One that the
        limit cuts off is scored at its last finished step.
        """
        rollouts = []
        for child in children:
            (branch,) = self.branches.fork(child.policy, 1)
            rollouts.append(_Rollout(child, branch, child.num_tokens))
        for _ in range(num_steps):
            await self._extend([r for r in rollouts if r.is_live and r.num_tokens < self.max_tokens])
        judged, forks = [], []
        for rollout in rollouts:
            self.branches.close(rollout.policy)
            if rollout.steps[-1].finish == "error":
                rollout.of.new_scores[-1] = math.nan
            elif any(map(is_judged, rollout.steps)):
                judged.append(rollout)
                forks += self.branches.fork(rollout.of.verifier, 1)
        if not judged:
            return
        steps = [[step for step in rollout.steps if is_judged(step)] for rollout in judged]
        scores = await self.verifier.score(forks, steps)
        for rollout, branch, new_scores in zip(judged, forks, scores, strict=True):
            self.branches.close(branch)
            rollout.of.new_scores[-1] = new_scores[-1]

    async def _extend(self, rollouts: Sequence[_Rollout]) -> None:
        """One more step on each rollout."""
        if not rollouts:
            return
        steps = await self.policy.extend(
            [rollout.policy for rollout in rollouts],
            keys=[branch_key(self.seed, self.problem_id, rollout.of.address) for rollout in rollouts],
            sampling=GREEDY,
            stop_at_step=True,
            max_tokens=[self.max_tokens - rollout.num_tokens for rollout in rollouts],
            purpose="lookahead",
            priorities=[rollout.of.agg_score for rollout in rollouts],
        )
        for rollout, new_steps in zip(rollouts, steps, strict=True):
            rollout.steps += new_steps
            rollout.num_tokens += sum(len(step.token_ids) for step in new_steps)
