"""Chains of attempts: what each attempt goes on from, and whose KV it goes on with."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.accounting.ledger import Ledger
from engine.search.protocols import Attempt, Policy, PolicyBranch, Verifier, VerifierBranch, reads_history
from engine.search.tree import OpenBranches, Trajectory
from engine.types import FINISHED, Problem


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


class Chains:
    """The chains of one problem's search; they advance together, an attempt of each per round.

    While no attempt falls out of the context, the next one goes on from the branch of the last, whose KV it
    shares. Else its branch is opened anew, with the latest attempts: then every token has another position.
    """

    def __init__(
        self,
        problem: Problem,
        policy: Policy,
        verifier: Verifier | None,
        branches: OpenBranches,
        ledger: Ledger,
        *,
        numbers: range,  # of the chains, among the children of the root
        context: int,
        judge_alone: bool,
        max_tokens: int,
    ):
        self.problem, self.policy, self.verifier = problem, policy, verifier
        self.branches, self.ledger = branches, ledger
        self.context, self.max_tokens = context, max_tokens
        self.is_judged_in_chain = reads_history(verifier) and not judge_alone
        self.chains = {number: _Chain(Trajectory((), 0, num_children=number)) for number in numbers}
        self._judge: VerifierBranch | None = None  # of attempts that are judged alone: the same for all of them

    async def open(self) -> list[tuple[Trajectory, int]]:
        """What the next attempts start from, with one child each; their policy branches are open."""
        for chain in self.chains.values():
            if chain.last.policy is None:
                held = {"history": chain.held} if chain.num_held else {}
                branch = await self.policy.open(self.problem.prompt, ledger=self.ledger, **held)
                chain.last.policy = self.branches.add(branch)
        return [(chain.last, 1) for chain in self.chains.values()]

    async def open_judge(self, parent: Trajectory) -> VerifierBranch:
        """What an attempt after `parent` is judged on a fork of."""
        if not self.is_judged_in_chain:
            if self._judge is None:
                self._judge = self.branches.add(await self.verifier.open(self.problem, ledger=self.ledger))
            return self._judge
        chain = next(chain for chain in self.chains.values() if chain.last is parent)
        held = {"history": chain.held} if chain.num_held else {}
        return self.branches.add(await self.verifier.open(self.problem, ledger=self.ledger, **held))

    def advance(self, child: Trajectory, is_last: bool) -> None:
        """Takes an attempt that has ended into its chain, and closes what the next one does not need."""
        chain, parent = self.chains[child.address[0]], child.parent
        chain.last = child
        is_whole = child.finish in FINISHED and child.text.strip() != ""
        if is_whole:
            chain.history = [*chain.history, tuple(child.new_steps)][-self.context :]
        num_wanted = self.policy.num_fitting(self.problem.prompt, chain.history, self.max_tokens)
        if not self.is_judged_in_chain:
            self._close(child.verifier)
            child.verifier = None
        if is_last or (is_whole and num_wanted <= chain.num_held):  # nothing follows, or the window slides
            self._close(parent.policy, parent.verifier, child.policy, child.verifier)
            child.policy = child.verifier = None
        elif is_whole:
            assert num_wanted == chain.num_held + 1, "a history that grows by an attempt fits in part only"
            self._close(parent.policy, parent.verifier)
            self.policy.ask_again(child.policy, self.problem.prompt)
        else:
            self._close(child.policy, child.verifier)
            child.policy, child.verifier = parent.policy, parent.verifier
        chain.num_held = num_wanted
        parent.policy = parent.verifier = None

    def _close(self, *branches: PolicyBranch | VerifierBranch | None) -> None:
        """Closes them, but for the judge that all attempts share."""
        for branch in branches:
            if branch is not None and branch is not self._judge:
                self.branches.close(branch)
