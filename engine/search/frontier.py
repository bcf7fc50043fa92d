"""Where a search may go on: which trajectories have children, and which branches stay open for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.search.branches import OpenBranches
from engine.search.tree import Extension, Trajectory

Allotment = list[tuple[Trajectory, int]]  # the trajectories that are expanded, and their numbers of children


class Frontier(Protocol):
    """What differs between a tree of steps and chains of revisions. The loop calls it in the order of the methods."""

    is_node_per_step: bool  # else all steps of an extension are one node of the tree

    async def draw(self, num_drawn: int, *, is_last: bool) -> Allotment:
        """The trajectories that `num_drawn` answers start from, with their policy branches open.

        `is_last`: no answers start after these.
        """
        ...

    def fork_policy(self, parent: Trajectory, num_children: int) -> list[Trajectory]:
        """The children of a trajectory, each with a policy branch that is about to be extended."""
        ...

    def stop(self, trajectory: Trajectory) -> None:
        """Told of a trajectory onto which nothing more is sampled: it has ended, or a limit was reached."""
        ...

    async def fork_verifier(self, parent: Trajectory, children: Sequence[Trajectory]) -> None:
        """Gives the children of one parent that are to be judged (perhaps none) their verifier branches."""
        ...

    def group(self, trajectory: Trajectory) -> int:
        """The index of the group whose slots the trajectory takes."""
        ...

    def end(self, extension: Extension) -> None:
        """Told of a trajectory that does not go on, after it was scored; closes what nothing else needs."""
        ...


class TreeFrontier:
    """A tree under the prompt: first steps are children of the root, and every kept step has children of its own.

    A single child is forked too: where the KV is cut must follow from the search alone. The root stays
    open as long as answers may start from it.
    """

    is_node_per_step = True

    def __init__(self, branches: OpenBranches, num_slots: int, num_before: int) -> None:
        """`num_slots` of each group; `num_before` children of the root were sampled by an earlier search."""
        self.branches, self.num_slots, self.num_before = branches, num_slots, num_before
        self.root = Trajectory(address=(), node=0, num_children=num_before)
        self.is_last = False  # draw of answers

    async def draw(self, num_drawn: int, *, is_last: bool) -> Allotment:
        self.is_last = is_last
        if self.root.policy is None:
            self.root.policy = await self.branches.open_policy()
        return [(self.root, num_drawn)]

    def fork_policy(self, parent: Trajectory, num_children: int) -> list[Trajectory]:
        children = [
            Trajectory(
                address=parent.next_address(),
                node=parent.node,
                parent=parent,
                text=parent.text,
                num_tokens=parent.num_tokens,
                scores=parent.scores,
                agg_score=parent.agg_score,
                policy=branch,
            )
            for branch in self.branches.fork(parent.policy, num_children)
        ]
        if not self._has_more_children(parent):
            self.branches.close_policy(parent)
        return children

    def stop(self, trajectory: Trajectory) -> None:
        self.branches.close_policy(trajectory)

    async def fork_verifier(self, parent: Trajectory, children: Sequence[Trajectory]) -> None:
        if children and parent.verifier is None:
            assert parent is self.root, "a live trajectory has a verifier branch"
            parent.verifier = await self.branches.open_verifier()
        if children:
            forks = self.branches.fork(parent.verifier, len(children))
            for child, branch in zip(children, forks, strict=True):
                child.verifier = branch
        if parent.verifier is not None and not self._has_more_children(parent):
            self.branches.close_verifier(parent)

    def group(self, trajectory: Trajectory) -> int:
        return (trajectory.address[0] - self.num_before) // self.num_slots

    def end(self, extension: Extension) -> None:
        if not self.is_last:
            extension.trajectory.verifier = None  # stays open to the end: further answers may share its steps
        self.branches.release(extension.trajectory)

    def _has_more_children(self, parent: Trajectory) -> bool:
        """Whether a trajectory that was expanded may be expanded again."""
        return parent is self.root and not self.is_last
