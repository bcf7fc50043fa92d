"""The loop that every search runs: expand, score, select, until nothing is live."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from engine.accounting.ledger import Ledger
from engine.keys import branch_key
from engine.search.aggregate import aggregate
from engine.search.arguments import check_arguments, sampler
from engine.search.greedy_rollouts import GreedyRollouts
from engine.search.protocols import Policy, Strategy, Verifier, VerifierBranch, judges_answers
from engine.search.revision_chains import Chains
from engine.search.tree import OpenBranches, Trajectory, append_steps
from engine.search.vote import Classify, merge_equal, vote
from engine.types import FINISHED, Candidate, Problem, Sampling, SearchResult, SearchTree, TreeNode

Extract = Callable[[str], str | None]
Grade = Callable[[str, str], bool | None]
Allotment = list[tuple[Trajectory, int]]  # who is expanded, and into how many children


async def run_search(
    problem: Problem,
    strategy: Strategy,
    policy: Policy,
    verifier: Verifier | None,
    *,
    budget: int,
    seed: int,
    sampling: Sampling,
    max_tokens: int,
    agg_strategy: str = "last",
    extract: Extract,
    grade: Grade | None = None,
    classify: Classify | None = None,
    ledger: Ledger | None = None,
    start: SearchResult | None = None,
    reviser: Policy | None = None,
) -> SearchResult:
    """Searches for the answer of one problem with `budget` generations.

    `max_tokens` bounds a whole completion. `agg_strategy` turns the scores of a trajectory's steps
    into the one score by which it is ranked and by which it votes. `extract` finds the answer that
    a completion states, `classify` which answers are equal and count as one in votes (default: equal
    strings). `grade(answer, gold)` says whether it is right (default: the strings are equal), None or
    an exception that it cannot tell. The verifier is not used, and may be None, where the strategy scores nothing.

    `start` is an earlier search of the same problem to go on from: what it spent counts, its
    candidates vote, and the branches that follow are those that a larger budget would have given it (but
    for a strategy that revises: it starts further chains). `reviser` samples for such a strategy, in the place of
    the policy.

    All branches are closed when the coroutine ends, is closed or raises. Raises UserError for a
    budget, limit or option out of range, before anything is opened.
    """
    num_spent = 0 if start is None else start.num_generations
    limits = {"budget": budget, "max_tokens": max_tokens, "agg_strategy": agg_strategy, "num_spent": num_spent}
    check_arguments(strategy, verifier, **limits)
    policy = sampler(strategy, policy, reviser)
    ledger = Ledger() if ledger is None else ledger
    search = _Search(problem, strategy, policy, verifier, seed, sampling, max_tokens, agg_strategy, extract, ledger)
    if start is not None:
        search.go_on_from(start)
    try:
        if num_spent < budget:
            num_spent += await search.run(budget - num_spent)
    finally:
        search.branches.close_all()
    if classify is not None:
        search.candidates = merge_equal(search.candidates, classify)
    answer, best = vote(search.candidates, strategy.vote)
    search.tree.best = None if best is None else search.final_nodes[best]
    return SearchResult(
        problem=problem,
        answer=answer,
        candidates=tuple(search.candidates),
        tree=search.tree,
        ledger=ledger,
        strategy=strategy.name,
        budget=budget,
        seed=seed,
        correct=is_correct(answer, problem.answer, grade),
        num_errors=sum(candidate.finish == "error" for candidate in search.candidates),
        num_generations=num_spent,
    )


def is_correct(answer: str | None, gold: str | None, grade: Grade | None) -> bool | None:
    """None where there is no gold answer, or where the grader cannot tell."""
    if gold is None:
        return None
    if answer is None:
        return False
    if grade is None:
        return answer == gold
    try:
        return grade(answer, gold)
    except Exception:  # a grader reads what a model wrote; its failure is a verdict of its own
        return None


@dataclass
class _Search:
    """The state of one problem's search."""

    problem: Problem
    strategy: Strategy
    policy: Policy
    verifier: Verifier | None
    seed: int
    sampling: Sampling
    max_tokens: int
    agg_strategy: str
    extract: Extract
    ledger: Ledger
    tree: SearchTree = field(default_factory=lambda: SearchTree([TreeNode((), None, status="root")]))
    branches: OpenBranches = field(default_factory=OpenBranches)
    candidates: list[Candidate] = field(default_factory=list)  # in the order in which they ended
    final_nodes: list[int] = field(default_factory=list)  # one per candidate
    num_before: int = 0  # children of the root that an earlier search has sampled
    num_left: int = 0  # slots that have not been drawn yet
    chains: Chains | None = None  # of a strategy that revises

    def go_on_from(self, start: SearchResult) -> None:
        """Takes over the tree, the candidates and the bill of an earlier search."""
        assert start.problem.id == self.problem.id, "a search goes on from one of the same problem"
        self.tree.nodes[:] = start.tree.nodes
        self.candidates += start.candidates
        by_address = {node.address: index for index, node in enumerate(start.tree.nodes)}
        self.final_nodes += [by_address[candidate.address] for candidate in start.candidates]
        self.num_before = sum(len(node.address) == 1 for node in start.tree.nodes)
        self.ledger.include(start.ledger)

    async def run(self, budget: int) -> int:
        """Fills `tree` and `candidates`; returns the generations spent.

        What an ended answer took of its group's slots stays taken.
        """
        num_groups, num_slots = self.strategy.groups(budget)
        num_all = self.num_left = num_groups * num_slots
        num_ended = [0] * num_groups
        root = Trajectory(address=(), node=0, num_children=self.num_before)
        if self.strategy.revises:
            self.chains = self.make_chains(num_groups)
        while self.num_left and (num_drawn := self.strategy.draw(self.candidates, self.num_left)):
            assert 0 < num_drawn <= self.num_left, "budget overshot"
            self.num_left -= num_drawn
            if self.chains is not None:
                allotment = await self.chains.open()
            else:
                if root.policy is None:
                    root.policy = self.branches.add(await self.policy.open(self.problem.prompt, ledger=self.ledger))
                allotment = [(root, num_drawn)]
            assert sum(num_children for _, num_children in allotment) == num_drawn, "budget overshot"
            await self.descend(allotment, num_slots, num_ended)
        return (num_all - self.num_left) * (self.strategy.lookahead + 1)

    def make_chains(self, num_chains: int) -> Chains:
        return Chains(
            self.problem,
            self.policy,
            self.verifier,
            self.branches,
            self.ledger,
            numbers=range(self.num_before, self.num_before + num_chains),
            context=self.strategy.context,
            judge_alone=self.strategy.judge_alone,
            max_tokens=self.max_tokens,
        )

    async def descend(self, allotment: Allotment, num_slots: int, num_ended: list[int]) -> None:
        """Rounds of expanding, scoring and selecting until nothing is live; counts each group's ended answers."""
        num_rounds = 0
        while allotment:
            num_rounds += 1
            children = await self.expand(allotment, is_last=num_rounds == self.strategy.max_rounds)
            if self.strategy.is_scored:
                await self.score(children)
            live: list[list[Trajectory]] = [[] for _ in num_ended]
            for child in children:
                number = child.address[0] - self.num_before
                group = number if self.chains is not None else number // num_slots
                if child.finish == "step":
                    live[group].append(child)
                else:
                    num_ended[group] += 1
                    self.end(child)
            allotment = []
            for members, ended in zip(live, num_ended, strict=True):
                allotment += self.select(members, num_slots - ended)

    def is_needed(self, parent: Trajectory) -> bool:
        """Whether more children of an expanded trajectory may follow: of the root, while slots are left; what a
        chain goes on from, it closes itself."""
        return self.chains is not None or (parent.parent is None and self.num_left > 0)

    async def expand(self, allotment: Allotment, *, is_last: bool) -> list[Trajectory]:
        """Samples the children of every survivor in one call. A single child is forked too: where
        the KV is cut must follow from the search alone."""
        children = []
        for parent, num_children in allotment:
            follow = parent.child if self.chains is None else parent.next_attempt
            children += [follow(branch) for branch in self.branches.fork(parent.policy, num_children)]
            if not self.is_needed(parent):
                self.branches.close(parent.policy)
                parent.policy = None
        steps = await self.policy.extend(
            [child.policy for child in children],
            keys=[branch_key(self.seed, self.problem.id, child.address) for child in children],
            sampling=self.sampling,
            stop_at_step=self.strategy.stop_at_step,
            max_tokens=[self.max_tokens - child.num_tokens for child in children],
            priorities=[child.agg_score for child in children] if self.strategy.stop_at_step else None,
        )
        for child, new_steps in zip(children, steps, strict=True):
            append_steps(self.tree, child, new_steps, as_one=self.chains is not None)
            if child.finish == "step" and (is_last or child.num_tokens >= self.max_tokens):
                self.set_finish(child, "length")  # it may not go on
            if child.finish != "step" and self.chains is None:
                self.branches.close(child.policy)
                child.policy = None
        return children

    async def score(self, children: Sequence[Trajectory]) -> None:
        """Has the new steps judged, on forks of the parents' verifier branches."""
        as_one = judges_answers(self.verifier)
        for child in children:
            child.judged = child.judged_steps(as_one)
        judged = [child for child in children if child.judged]
        for parent, siblings in groupby(children, key=lambda child: child.parent):
            members = [child for child in siblings if child.judged]
            if members and parent.verifier is None:
                parent.verifier = await self.open_judge(parent)
            if members:
                forks = self.branches.fork(parent.verifier, len(members))
                for child, branch in zip(members, forks, strict=True):
                    child.verifier = branch
            if parent.verifier is not None and not self.is_needed(parent):
                self.branches.close(parent.verifier)
                parent.verifier = None
        if not judged:
            return
        steps = [[step for _, step in child.judged] for child in judged]
        scores = await self.verifier.score([child.verifier for child in judged], steps)
        for child, new_scores in zip(judged, scores, strict=True):
            child.new_scores = list(new_scores)
        if self.strategy.lookahead:
            ahead = GreedyRollouts(
                self.policy, self.verifier, self.branches, self.problem.id, self.seed, self.max_tokens
            )
            going = [child for child in judged if child.finish == "step" and math.isfinite(child.new_scores[-1])]
            await ahead.rescore(going, self.strategy.lookahead)
        for child in judged:
            self.record(child)

    async def open_judge(self, parent: Trajectory) -> VerifierBranch:
        """The branch that the first steps, or the next attempt of a chain, are judged on forks of."""
        if self.chains is not None:
            return await self.chains.open_judge(parent)
        assert parent.parent is None, "a live trajectory has a verifier branch"
        return self.branches.add(await self.verifier.open(self.problem, ledger=self.ledger))

    def record(self, child: Trajectory) -> None:
        """Writes the new scores down; one that is not finite turns the child into an error."""
        if not all(map(math.isfinite, child.new_scores)):
            self.set_finish(child, "error")
            return
        for (node, _), score in zip(child.judged, child.new_scores, strict=True):
            child.scores += (score,)
            child.agg_score = aggregate(child.scores, self.agg_strategy)
            self.tree.nodes[node].score = score
            self.tree.nodes[node].agg_score = child.agg_score

    def select(self, live: Sequence[Trajectory], num_slots: int) -> Allotment:
        """The survivors of one group and their numbers of children; the others are closed."""
        assert len(live) <= num_slots, "more live answers than the budget has slots"
        texts = [child.new_steps[-1].text for child in live]
        chosen = self.strategy.select([child.agg_score for child in live], num_slots, texts)
        assert sum(num_children for _, num_children in chosen) <= num_slots, "budget overshot"
        survivors = [(live[index], num_children) for index, num_children in chosen]
        kept = {index for index, _ in chosen}
        for index, child in enumerate(live):
            if index in kept:
                self.tree.nodes[child.node].status = "kept"
            else:
                self.release(child)
        return survivors

    def end(self, child: Trajectory) -> None:
        """Turns a trajectory that does not go on into a candidate."""
        if self.chains is not None:
            self.chains.advance(child, is_last=self.num_left == 0)
        else:
            if self.num_left:
                child.verifier = None  # stays open to the end: further answers may share its steps
            self.release(child)
        self.tree.nodes[child.node].status = "final"
        answer = self.extract(child.text) if child.finish in FINISHED else None
        self.final_nodes.append(child.node)
        self.candidates.append(
            Candidate(
                text=child.text,
                answer=answer,
                finish=child.finish,
                scores=child.scores,
                agg_score=child.agg_score,
                num_tokens=child.num_tokens,
                address=child.address,
            )
        )

    def set_finish(self, child: Trajectory, finish: str) -> None:
        child.finish = finish
        self.tree.nodes[child.node].finish = finish

    def release(self, child: Trajectory) -> None:
        """Closes what a trajectory still holds."""
        for branch in (child.policy, child.verifier):
            if branch is not None:
                self.branches.close(branch)
        child.policy = child.verifier = None
