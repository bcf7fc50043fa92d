"""Chains of attempts: what each attempt goes on from, and which KV it goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.search.branches import OpenBranches
from engine.search.frontier import Allotment
from engine.search.protocols import PolicyBranch
from engine.search.tree import Extension, Trajectory
from engine.types import FINISHED, Attempt
from engine.verifiers.base import VerifierBranch


@dataclass(eq=False, slots=True)
class _Chain:
    """One chain. `last` is its latest attempt, whose branches hold what the next one starts behind.

    Its policy branch holds `num_held` attempts, each after the prompt, and the prompt; its verifier branch (where
    they are judged in their chain) the same attempts.
    """

    last: Trajectory
    history: list[Attempt] = field(default_factory=list)  # the latest whole attempts, oldest first
    num_held: int = 0

    @property
    def held(self) -> list[Attempt]:
        return self.history[len(self.history) - self.num_held :]


class RevisionChains:
    """The frontier of a strategy that revises: chains that advance together, an attempt of each per round.

    While no attempt falls out of the context, the next one goes on from the branch of the last, whose KV it
    shares. Else its branch is opened anew, with the latest attempts: then every token has another position.
    """

    is_node_per_step = False

    def __init__(
        self,
        branches: OpenBranches,
        *,
        numbers: range,  # of the chains, among the children of the root
        context: int,  # earlier attempts that an attempt is shown, at most
        judge_alone: bool,  # the verifier is not shown them, even if it reads them
        max_tokens: int,  # of an attempt
    ):
        self.branches, self.first, self.context, self.max_tokens = branches, numbers.start, context, max_tokens
        reads_history = branches.verifier is not None and branches.verifier.reads_history
        self.is_judged_in_chain = reads_history and not judge_alone
        self.is_last = False  # round of attempts
        self.chains = [_Chain(Trajectory((), 0, num_children=number)) for number in numbers]
        self._shared_judge: VerifierBranch | None = None  # for attempts that are judged alone: one for all of them

    async def draw(self, num_drawn: int, *, is_last: bool) -> Allotment:
        self.is_last = is_last
        for chain in self.chains:
            if chain.last.policy is None:
                chain.last.policy = await self.branches.open_policy(chain.held)
        return [(chain.last, 1) for chain in self.chains]

    def fork_policy(self, parent: Trajectory, num_children: int) -> list[Trajectory]:
        """The next attempt, which starts without a text; what its parent holds is closed when it has ended."""
        (branch,) = self.branches.fork(parent.policy, num_children)
        return [Trajectory(address=parent.next_address(), node=parent.node, parent=parent, policy=branch)]

    def stop(self, trajectory: Trajectory) -> None:
        """Nothing: the next attempt may go on from its branch."""

    async def fork_verifier(self, parent: Trajectory, children: Sequence[Trajectory]) -> None:
        for child in children:
            if parent.verifier is None:
                parent.verifier = await self._open_verifier(parent)
            (child.verifier,) = self.branches.fork(parent.verifier, 1)

    def group(self, trajectory: Trajectory) -> int:
        return trajectory.address[0] - self.first

    def end(self, extension: Extension) -> None:
        """Takes an attempt that has ended into its chain, and closes what the next one does not need."""
        child, parent = extension.trajectory, extension.trajectory.parent
        chain = self.chains[self.group(child)]
        chain.last = child
        is_whole = child.finish in FINISHED and child.text.strip() != ""
        if is_whole:
            chain.history = [*chain.history, tuple(extension.steps)][-self.context :]
        policy, prompt = self.branches.policy, self.branches.problem.asked
        num_wanted = policy.num_fitting(prompt, chain.history, self.max_tokens)
        if not self.is_judged_in_chain:
            self._close(child.verifier)
            child.verifier = None
        if self.is_last or (is_whole and num_wanted <= chain.num_held):  # nothing follows, or the window slides
            self._close(parent.policy, parent.verifier, child.policy, child.verifier)
            child.policy = child.verifier = None
        elif is_whole:
            assert num_wanted == chain.num_held + 1, "a history that grows by an attempt fits in part only"
            self._close(parent.policy, parent.verifier)
            policy.ask_again(child.policy, prompt)
        else:
            self._close(child.policy, child.verifier)
            child.policy, child.verifier = parent.policy, parent.verifier
        chain.num_held = num_wanted
        parent.policy = parent.verifier = None

    async def _open_verifier(self, parent: Trajectory) -> VerifierBranch:
        """The branch whose fork the attempt after `parent` is judged on."""
        if self.is_judged_in_chain:
            chain = next(chain for chain in self.chains if chain.last is parent)
            return await self.branches.open_verifier(chain.held)
        if self._shared_judge is None:
            self._shared_judge = await self.branches.open_verifier()
        return self._shared_judge

    def _close(self, *branches: PolicyBranch | VerifierBranch | None) -> None:
        """Closes them, but for the judge that all attempts share."""
        for branch in branches:
            if branch is not None and branch is not self._shared_judge:
                self.branches.close(branch)
