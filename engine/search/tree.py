"""The growing tree of one search: its trajectories, what each gains in a round, and the answers that have ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.search.aggregate import aggregate
from engine.search.protocols import PolicyBranch
from engine.types import FINISHED, Candidate, SearchResult, SearchTree, Step, TreeNode
from engine.verifiers.base import VerifierBranch


@dataclass(eq=False, slots=True)
class Trajectory:
    """A path from the root: its text so far, its scores, and its branches while it lives."""

    address: tuple[int, ...]
    node: int  # index of its last node
    parent: Trajectory | None = None
    finish: str = "step"
    text: str = ""
    num_tokens: int = 0
    scores: tuple[float, ...] = ()
    agg_score: float = 0.0  # of `scores`
    policy: PolicyBranch | None = None
    verifier: VerifierBranch | None = None
    num_children: int = 0  # so far; the next one's address follows from it

    def next_address(self) -> tuple[int, ...]:
        """The address of one more child, which is counted."""
        self.num_children += 1
        return (*self.address, self.num_children - 1)


@dataclass(eq=False, slots=True)
class Extension:
    """What one trajectory gains in one round: its new steps, and the verifier's scores of them."""

    trajectory: Trajectory
    steps: Sequence[Step]
    nodes: Sequence[int]  # one per step: the index of its node in the search tree
    judged: Sequence[tuple[int, Step]] = ()  # (node, step) of what the verifier is given
    scores: list[float] = field(default_factory=list)  # one per judged step, once there are any

    def judge(self, judges: str) -> None:
        """Finds what a verifier of "steps" or of "answers" is given: nothing of an answer that was cut off.

        One of answers is given the steps of a finished answer joined to a single one.
        """
        judged = [pair for pair in zip(self.nodes, self.steps, strict=True) if is_judged(pair[1])]
        if judges == "answers":
            judged = [(judged[-1][0], join_steps([step for _, step in judged]))] if judged else []
        is_given = self.trajectory.finish in FINISHED or (self.trajectory.finish == "step" and judges == "steps")
        self.judged = judged if is_given else []

    @property
    def is_going_on(self) -> bool:
        """Whether the trajectory is neither complete, nor cut off, nor spoiled by a score that is not finite."""
        return self.trajectory.finish == "step" and math.isfinite(self.scores[-1])


def is_judged(step: Step) -> bool:
    """Whether a step is a finished step of the reasoning.

    A truncated step is not finished. An end-of-text token alone is no step, and neither is a stop text: judging it
    would put an empty last step in the place of the real one.
    """
    return step.finish in ("step", "boxed") or (step.finish in ("eos", "stop") and step.text.strip() != "")


def join_steps(steps: Sequence[Step]) -> Step:
    """Consecutive steps as one."""
    token_ids = tuple(token for step in steps for token in step.token_ids)
    num_unknown = sum(step.num_unknown for step in steps)
    return replace(steps[-1], token_ids=token_ids, text="".join(step.text for step in steps), num_unknown=num_unknown)


@dataclass
class SearchRecord:
    """What a search has found so far."""

    tree: SearchTree = field(default_factory=lambda: SearchTree([TreeNode((), None, status="root")]))
    candidates: list[Candidate] = field(default_factory=list)  # in the order in which they ended
    final_nodes: list[int] = field(default_factory=list)  # one per candidate

    @classmethod
    def going_on_from(cls, start: SearchResult) -> SearchRecord:
        """The tree and the candidates of an earlier search of the same problem."""
        nodes = list(start.tree.nodes)
        by_address = {node.address: index for index, node in enumerate(nodes)}
        final_nodes = [by_address[candidate.address] for candidate in start.candidates]
        return cls(SearchTree(nodes), list(start.candidates), final_nodes)

    @property
    def num_first_steps(self) -> int:
        """Children of the root."""
        return sum(len(node.address) == 1 for node in self.tree.nodes)

    def append(self, trajectory: Trajectory, steps: Sequence[Step], *, as_one: bool) -> Extension:
        """Adds the new steps of a trajectory to the tree as a chain of nodes, or all of them as one node."""
        assert steps, "a policy returns at least one step per branch"
        nodes, first = self.tree.nodes, len(self.tree.nodes)
        for step in [join_steps(steps)] if as_one else steps:
            if len(nodes) > first:
                nodes[-1].status = "kept"
                trajectory.address += (0,)
            parent, num_tokens = trajectory.node, step.num_tokens
            node = TreeNode(trajectory.address, parent, step.text, num_tokens=num_tokens, finish=step.finish)
            node.token_ids = tuple(step.token_ids)
            nodes.append(node)
            trajectory.node = len(nodes) - 1
            trajectory.text += step.text
            trajectory.num_tokens += num_tokens
        trajectory.finish = steps[-1].finish
        return Extension(trajectory, steps, [first] * len(steps) if as_one else range(first, len(nodes)))

    def set_finish(self, trajectory: Trajectory, finish: str) -> None:
        trajectory.finish = self.tree.nodes[trajectory.node].finish = finish

    def add_scores(self, extension: Extension, agg_strategy: str) -> None:
        """Writes new scores down; one that is not finite turns the trajectory into an error."""
        trajectory = extension.trajectory
        if not all(map(math.isfinite, extension.scores)):
            self.set_finish(trajectory, "error")
            return
        for (index, _), score in zip(extension.judged, extension.scores, strict=True):
            trajectory.scores += (score,)
            trajectory.agg_score = aggregate(trajectory.scores, agg_strategy)
            node = self.tree.nodes[index]
            node.score, node.agg_score = score, trajectory.agg_score

    def add_candidate(self, trajectory: Trajectory, answer: str | None) -> None:
        """Takes a trajectory that does not go on as a candidate; its `answer` is what its text states."""
        self.tree.nodes[trajectory.node].status = "final"
        self.final_nodes.append(trajectory.node)
        self.candidates.append(
            Candidate(
                text=trajectory.text,
                answer=answer,
                finish=trajectory.finish,
                scores=trajectory.scores,
                agg_score=trajectory.agg_score,
                num_tokens=trajectory.num_tokens,
                address=trajectory.address,
            )
        )
