"""The growing tree of one search: trajectories, their nodes, and the branches that are open."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from engine.search.protocols import PolicyBranch, VerifierBranch
from engine.types import SearchTree, Step, TreeNode

Branch = TypeVar("Branch", PolicyBranch, VerifierBranch)


def is_judged(step: Step) -> bool:
    """Whether a step is a finished step of the reasoning.

    A truncated step is not finished. An end-of-text token alone is no step: judging it would put
    an empty last step in the place of the real one.
    """
    return step.finish == "step" or (step.finish == "eos" and step.text != "")


@dataclass(eq=False)
class Trajectory:
    """A path from the root: what it says so far, what it scored, and its branches while it lives."""

    address: tuple[int, ...]
    node: int  # index of its last node
    parent: Trajectory | None = None
    finish: str = "step"
    text: str = ""
    num_tokens: int = 0
    scores: tuple[float, ...] = ()
    agg_score: float = 0.0  # of `scores`
    new_steps: list[Step] = field(default_factory=list)  # of the latest round
    new_nodes: list[int] = field(default_factory=list)  # one per new step
    judged: list[tuple[int, Step]] = field(default_factory=list)  # of the new ones, as (node, step)
    new_scores: list[float] = field(default_factory=list)  # one per judged step
    policy: PolicyBranch | None = None
    verifier: VerifierBranch | None = None

    def child(self, index: int, policy: PolicyBranch) -> Trajectory:
        """The trajectory that goes on from here on a fork of its own."""
        return Trajectory(
            address=(*self.address, index),
            node=self.node,
            parent=self,
            text=self.text,
            num_tokens=self.num_tokens,
            scores=self.scores,
            agg_score=self.agg_score,
            policy=policy,
        )

    def judged_steps(self) -> list[tuple[int, Step]]:
        """(node, step) of the new steps that a verifier judges: none of an answer that was cut off."""
        if self.finish not in ("step", "eos"):
            return []
        pairs = zip(self.new_nodes, self.new_steps, strict=True)
        return [(node, step) for node, step in pairs if is_judged(step)]


def append_steps(tree: SearchTree, trajectory: Trajectory, steps: Sequence[Step]) -> None:
    """Adds the new steps of a trajectory to the tree as a chain of nodes."""
    assert steps, "a policy returns at least one step per branch"
    parent = trajectory.node
    for index, step in enumerate(steps):
        address = trajectory.address + (0,) * index
        tree.nodes.append(TreeNode(address, parent, step.text, num_tokens=len(step.token_ids), finish=step.finish))
        parent = len(tree.nodes) - 1
        trajectory.new_nodes.append(parent)
    for node in trajectory.new_nodes[:-1]:
        tree.nodes[node].status = "kept"
    trajectory.address, trajectory.node = address, parent
    trajectory.new_steps = list(steps)
    trajectory.text += "".join(step.text for step in steps)
    trajectory.num_tokens += sum(len(step.token_ids) for step in steps)
    trajectory.finish = steps[-1].finish


class OpenBranches:
    """Every open branch of one search, so that none outlives it however it ends."""

    def __init__(self) -> None:
        self._open: dict[int, PolicyBranch | VerifierBranch] = {}

    def add(self, branch: Branch) -> Branch:
        self._open[id(branch)] = branch
        return branch

    def fork(self, branch: Branch, num_branches: int) -> list[Branch]:
        """`num_branches` children; the branch itself stays open."""
        return [self.add(child) for child in branch.fork(num_branches)]

    def close(self, branch: PolicyBranch | VerifierBranch) -> None:
        del self._open[id(branch)]  # first: a close that raises is not tried again
        branch.close()

    def close_all(self) -> None:
        """Closes every branch, children before parents, even where one of them raises."""
        with ExitStack() as stack:
            for branch in self._open.values():
                stack.callback(branch.close)
            self._open.clear()
