"""The growing tree of one search: trajectories, their nodes, and the branches that are open."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from engine.search.protocols import PolicyBranch, VerifierBranch
from engine.types import FINISHED, SearchTree, Step, TreeNode

Branch = TypeVar("Branch", PolicyBranch, VerifierBranch)


def is_judged(step: Step) -> bool:
    """Whether a step is a finished step of the reasoning.

    A truncated step is not finished. An end-of-text token alone is no step: judging it would put
    an empty last step in the place of the real one.
    """
    return step.finish in ("step", "boxed") or (step.finish == "eos" and step.text.strip() != "")


@dataclass(eq=False, slots=True)
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
    new_steps: Sequence[Step] = ()  # of the latest round
    new_nodes: Sequence[int] = ()  # one per new step
    judged: Sequence[tuple[int, Step]] = ()  # of the new ones, as (node, step)
    new_scores: list[float] | None = None  # one per judged step, once there are any
    policy: PolicyBranch | None = None
    verifier: VerifierBranch | None = None
    num_children: int = 0  # so far; the next one's address follows from it

    def child(self, policy: PolicyBranch) -> Trajectory:
        """The trajectory that goes on from here on a fork of its own."""
        self.num_children += 1
        return Trajectory(
            address=(*self.address, self.num_children - 1),
            node=self.node,
            parent=self,
            text=self.text,
            num_tokens=self.num_tokens,
            scores=self.scores,
            agg_score=self.agg_score,
            policy=policy,
        )

    def next_attempt(self, policy: PolicyBranch) -> Trajectory:
        """The attempt that revises this one: a child that says nothing yet."""
        self.num_children += 1
        address = (*self.address, self.num_children - 1)
        return Trajectory(address=address, node=self.node, parent=self, policy=policy)

    def judged_steps(self, as_one: bool = False) -> list[tuple[int, Step]]:
        """(node, step) of the new steps that a verifier judges: none of an answer that was cut off.

        `as_one` is for a verifier of whole answers: the steps of a finished answer as a single one.
        """
        if self.finish not in (*FINISHED, *(() if as_one else ("step",))):
            return []
        pairs = zip(self.new_nodes, self.new_steps, strict=True)
        judged = [(node, step) for node, step in pairs if is_judged(step)]
        return [(judged[-1][0], join_steps([step for _, step in judged]))] if as_one and judged else judged


def join_steps(steps: Sequence[Step]) -> Step:
    """Consecutive steps as one."""
    token_ids = tuple(token for step in steps for token in step.token_ids)
    return replace(steps[-1], token_ids=token_ids, text="".join(step.text for step in steps))


def append_steps(tree: SearchTree, trajectory: Trajectory, steps: Sequence[Step], as_one: bool = False) -> None:
    """Adds the new steps of a trajectory to the tree as a chain of nodes, or all of them as one node."""
    assert steps, "a policy returns at least one step per branch"
    nodes, parent, address = tree.nodes, trajectory.node, trajectory.address
    first = len(nodes)
    for step in [join_steps(steps)] if as_one else steps:
        if len(nodes) > first:
            nodes[-1].status = "kept"
            address += (0,)
        num_tokens = len(step.token_ids)
        nodes.append(TreeNode(address, parent, step.text, num_tokens=num_tokens, finish=step.finish))
        parent = len(nodes) - 1
        trajectory.text += step.text
        trajectory.num_tokens += num_tokens
    trajectory.address, trajectory.node = address, parent
    trajectory.new_steps = steps
    trajectory.new_nodes = [first] * len(steps) if as_one else range(first, len(nodes))
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
        children = branch.fork(num_branches)
        self._open.update((id(child), child) for child in children)
        return children

    def close(self, branch: PolicyBranch | VerifierBranch) -> None:
        del self._open[id(branch)]  # first: a close that raises is not tried again
        branch.close()

    def close_all(self) -> None:
        """Closes every branch, children before parents, even where one of them raises."""
        with ExitStack() as stack:
            for branch in self._open.values():
                stack.callback(branch.close)
            self._open.clear()
