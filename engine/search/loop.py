"""The loop that every search runs: draw, then rounds of expanding, scoring and selecting until nothing is live."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from engine.accounting.ledger import Ledger
from engine.config import SearchConfig
from engine.keys import branch_key
from engine.search.answers import Answers, is_correct
from engine.search.arguments import check_arguments
from engine.search.branches import OpenBranches
from engine.search.frontier import Allotment, Frontier, TreeFrontier
from engine.search.greedy_rollouts import rescore
from engine.search.protocols import Models, Strategy
from engine.search.revision_chains import RevisionChains
from engine.search.tree import Extension, SearchRecord, Trajectory
from engine.search.vote import vote
from engine.search.watch import UNWATCHED, Watch
from engine.types import FINISHED, Problem, SearchResult


async def run_search(
    problem: Problem,
    strategy: Strategy,
    models: Models,
    config: SearchConfig,
    answers: Answers,
    *,
    ledger: Ledger | None = None,
    start: SearchResult | None = None,
    watch: Watch = UNWATCHED,
) -> SearchResult:
    """Searches for the answer of one problem with `config.budget` generations.

    All branches are closed when the coroutine ends, is closed or raises.

    Args:
        strategy: how many children each trajectory has, what is scored, and who survives.
        models: what samples and what scores.
        config: `max_tokens`, here a number, bounds a whole completion. `agg_strategy` turns the scores of a
            trajectory's steps into the one score by which it is ranked and votes. `verifier` is not read.
        answers: how the answers of completions are found, graded and told apart.
        ledger: charged with all that the search costs; by default a new one.
        start: an earlier search of the same problem to go on from. What it spent counts, its candidates vote, and
            the branches that follow are those that a larger budget would have given it; but a strategy that
            revises starts chains of its own.
        watch: hears what happens, and may end the search with what it has.

    Raises:
        UserError: a budget, limit or option is out of range, or a model is missing. Nothing has been opened then.
    """
    num_spent = 0 if start is None else start.num_generations
    check_arguments(strategy, models.verifier, config, num_spent=num_spent)
    policy = models.sampler(strategy)
    ledger = Ledger() if ledger is None else ledger
    record = SearchRecord()
    if start is not None:
        assert start.problem.id == problem.id, "a search goes on from one of the same problem"
        record = SearchRecord.going_on_from(start)
        ledger.include(start.ledger)
    with OpenBranches(problem, policy, models.verifier, ledger) as branches:
        if num_spent < config.budget:
            search = _Search(strategy, config, answers, branches, record, watch)
            for part in strategy.parts(config.budget - num_spent):
                num_spent += await search.run(part, num_spent)
    candidates = answers.alike(record.candidates)
    answer, best = vote(candidates, strategy.vote)
    record.tree.best = None if best is None else record.final_nodes[best]
    return SearchResult(
        problem=problem,
        answer=answer,
        candidates=tuple(candidates),
        tree=record.tree,
        ledger=ledger,
        strategy=strategy.name,
        budget=config.budget,
        seed=config.seed,
        correct=is_correct(answer, problem.answer, answers.grade),
        num_errors=sum(candidate.finish == "error" for candidate in candidates),
        num_generations=num_spent,
    )


@dataclass(frozen=True)
class _Search:
    """One problem's search at work: it fills `record`."""

    strategy: Strategy
    config: SearchConfig
    answers: Answers
    branches: OpenBranches
    record: SearchRecord
    watch: Watch

    async def run(self, budget: int, num_before: int) -> int:
        """Draws answers until the strategy has enough or no slot is left; returns the generations spent.

        `num_before` were spent before. A slot is one answer of a group; what an ended answer took of its group's slots
        stays taken.
        """
        num_groups, num_slots = self.strategy.groups(budget)
        num_all = num_left = num_groups * num_slots  # slots that have not been drawn yet
        slots = [num_slots] * num_groups  # of each group, without an ended answer
        frontier = self.make_frontier(num_groups, num_slots)
        while num_left and not self.is_over() and (num_drawn := self.strategy.draw(self.record.candidates, num_left)):
            assert 0 < num_drawn <= num_left, "budget overshot"
            num_left -= num_drawn
            allotment = await frontier.draw(num_drawn, is_last=num_left == 0)
            assert sum(num_children for _, num_children in allotment) == num_drawn, "budget overshot"
            await self.descend(frontier, allotment, slots)
            num_spent = (num_all - num_left) * (self.strategy.lookahead + 1)
            self.watch.spent(self.record, num_before + num_spent)
        return (num_all - num_left) * (self.strategy.lookahead + 1)

    def make_frontier(self, num_groups: int, num_slots: int) -> Frontier:
        """A tree, or chains where the strategy revises; addresses go on after those of an earlier search."""
        num_before = self.record.num_first_steps
        if not self.strategy.revises:
            return TreeFrontier(self.branches, num_slots, num_before)
        return RevisionChains(
            self.branches,
            numbers=range(num_before, num_before + num_groups),
            context=self.strategy.context,
            judge_alone=self.strategy.judge_alone,
            max_tokens=self.config.max_tokens,
        )

    async def descend(self, frontier: Frontier, allotment: Allotment, slots: list[int]) -> None:
        """Rounds of expanding, scoring and selecting until nothing is live; takes ended answers' slots off `slots`."""
        num_rounds = 0
        while allotment:
            num_rounds += 1
            extensions = await self.expand(frontier, allotment, is_last=num_rounds == self.strategy.max_rounds)
            if self.strategy.is_scored:
                await self.score(frontier, extensions)
            self.watch.steps(self.record, extensions)
            live: list[list[Extension]] = [[] for _ in slots]
            for extension in extensions:
                group = frontier.group(extension.trajectory)
                if extension.trajectory.finish == "step":
                    live[group].append(extension)
                else:
                    slots[group] -= 1
                    self.end(frontier, extension)
            if self.is_over():
                for extension in itertools.chain.from_iterable(live):
                    self.prune(extension.trajectory)
                return
            allotment = []
            for members, num_slots in zip(live, slots, strict=True):
                allotment += self.select(members, num_slots)

    def is_over(self) -> bool:
        """Whether it was told to end, or the answer that leads the vote has the score at which the strategy stops."""
        if self.watch.is_over or self.strategy.stop is None:
            return self.watch.is_over
        _, best = vote(self.answers.alike(self.record.candidates), self.strategy.vote)
        return best is not None and self.record.candidates[best].agg_score >= self.strategy.stop

    async def expand(self, frontier: Frontier, allotment: Allotment, *, is_last: bool) -> list[Extension]:
        """Samples a step, or a whole answer, onto the children of all survivors in one call.

        After the `is_last` round, and at the limit of tokens, nothing goes on.
        """
        children = [child for parent, number in allotment for child in frontier.fork_policy(parent, number)]
        max_tokens, stops = self.config.max_tokens, self.strategy.stop_at_step
        steps = await self.branches.policy.extend(
            [child.policy for child in children],
            keys=[branch_key(self.config.seed, self.branches.problem.id, child.address) for child in children],
            sampling=self.config.sampling,
            stop_at_step=stops,
            max_tokens=[max_tokens - child.num_tokens for child in children],
            priorities=[child.agg_score for child in children] if stops else None,
        )
        extensions = []
        for child, new_steps in zip(children, steps, strict=True):
            extensions.append(self.record.append(child, new_steps, as_one=not frontier.is_node_per_step))
            if child.finish == "step" and (is_last or child.num_tokens >= max_tokens):
                self.record.set_finish(child, "length")
            if child.finish != "step":
                frontier.stop(child)
        return extensions

    async def score(self, frontier: Frontier, extensions: Sequence[Extension]) -> None:
        """Has the new steps judged, on forks of the parents' verifier branches."""
        verifier = self.branches.verifier
        for extension in extensions:
            extension.judge(verifier.judges)
        for parent, siblings in itertools.groupby(extensions, key=lambda extension: extension.trajectory.parent):
            await frontier.fork_verifier(parent, [sibling.trajectory for sibling in siblings if sibling.judged])
        judged = [extension for extension in extensions if extension.judged]
        if not judged:
            return
        steps = [[step for _, step in extension.judged] for extension in judged]
        scores = await verifier.score([extension.trajectory.verifier for extension in judged], steps)
        for extension, new_scores in zip(judged, scores, strict=True):
            extension.scores = list(new_scores)
        if self.strategy.lookahead:
            going_on = [extension for extension in judged if extension.is_going_on]
            await rescore(going_on, self.strategy.lookahead, self.branches, self.config)
        for extension in judged:
            self.record.add_scores(extension, self.config.agg_strategy)

    def select(self, live: Sequence[Extension], num_slots: int) -> Allotment:
        """The survivors of one group and their numbers of children; the others are closed."""
        assert len(live) <= num_slots, "more live answers than the budget has slots"
        texts = [extension.steps[-1].text for extension in live]
        chosen = self.strategy.select([extension.trajectory.agg_score for extension in live], num_slots, texts)
        assert sum(num_children for _, num_children in chosen) <= num_slots, "budget overshot"
        survivors = [(live[index].trajectory, num_children) for index, num_children in chosen]
        kept = {index for index, _ in chosen}
        for index, extension in enumerate(live):
            if index in kept:
                self.record.tree.nodes[extension.trajectory.node].status = "kept"
                self.watch.chosen(extension.trajectory, is_kept=True)
            else:
                self.prune(extension.trajectory)
        return survivors

    def prune(self, trajectory: Trajectory) -> None:
        """Gives up a trajectory."""
        self.branches.release(trajectory)
        self.watch.chosen(trajectory, is_kept=False)

    def end(self, frontier: Frontier, extension: Extension) -> None:
        """Turns a trajectory that does not go on into a candidate; one that was cut off states no answer."""
        trajectory = extension.trajectory
        frontier.end(extension)
        answer = self.answers.extract(trajectory.text) if trajectory.finish in FINISHED else None
        self.record.add_candidate(trajectory, answer)
        self.watch.ended(self.record.candidates[-1])
