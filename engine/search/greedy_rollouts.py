"""Scores a step by where it leads: greedy rollouts on forks, which never join the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config import SearchConfig
from engine.keys import branch_key
from engine.search.branches import OpenBranches
from engine.search.protocols import PolicyBranch
from engine.search.tree import Extension, is_judged
from engine.types import GREEDY, Step


@dataclass
class _Rollout:
    """The greedy continuation that shows where an extended trajectory leads."""

    extension: Extension
    policy: PolicyBranch
    num_tokens: int  # of the completion, the rollout included
    steps: list[Step] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        return not self.steps or self.steps[-1].finish == "step"


async def rescore(
    extensions: Sequence[Extension], num_steps: int, branches: OpenBranches, config: SearchConfig
) -> None:
    """Puts in the place of each extension's last score the verifier's score after `num_steps` greedy steps.

    Rollouts run on forks, which are closed; their steps never join the answer. One that the
    limit cuts off is scored at its last finished step.
    """
    rollouts = []
    for extension in extensions:
        (branch,) = branches.fork(extension.trajectory.policy, 1)
        rollouts.append(_Rollout(extension, branch, extension.trajectory.num_tokens))
    for _ in range(num_steps):
        await _extend([r for r in rollouts if r.is_live and r.num_tokens < config.max_tokens], branches, config)
    judged, forks = [], []
    for rollout in rollouts:
        branches.close(rollout.policy)
        if rollout.steps[-1].finish == "error":
            rollout.extension.scores[-1] = math.nan
        elif any(map(is_judged, rollout.steps)):
            judged.append(rollout)
            forks += branches.fork(rollout.extension.trajectory.verifier, 1)
    if not judged:
        return
    steps = [[step for step in rollout.steps if is_judged(step)] for rollout in judged]
    scores = await branches.verifier.score(forks, steps)
    for rollout, branch, new_scores in zip(judged, forks, scores, strict=True):
        branches.close(branch)
        rollout.extension.scores[-1] = new_scores[-1]


async def _extend(rollouts: Sequence[_Rollout], branches: OpenBranches, config: SearchConfig) -> None:
    """One more step on each rollout."""
    if not rollouts:
        return
    trajectories = [rollout.extension.trajectory for rollout in rollouts]
    steps = await branches.policy.extend(
        [rollout.policy for rollout in rollouts],
        keys=[branch_key(config.seed, branches.problem.id, each.address) for each in trajectories],
        sampling=GREEDY,
        stop_at_step=True,
        max_tokens=[config.max_tokens - rollout.num_tokens for rollout in rollouts],
        purpose="lookahead",
        priorities=[each.agg_score for each in trajectories],
    )
    for rollout, new_steps in zip(rollouts, steps, strict=True):
        rollout.steps += new_steps
        rollout.num_tokens += sum(len(step.token_ids) for step in new_steps)
