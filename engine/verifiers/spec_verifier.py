"""A verifier with a text format of its own: its KV forks in lockstep, its tags live in its branches alone."""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.errors import UserError
from engine.runtime import LLM, Branch
from engine.types import Problem, Step
from engine.verifiers.layouts import Layout, num_common
from engine.verifiers.model_verifier import NO_SCORE, ModelVerifier, read_steps


class SpecBranch:
    """The steps so far, and the live branch that holds their ids up to the last score."""

    def __init__(self, problem: Problem, live: Branch, ids: list[int], ledger: Ledger):
        self.problem, self.live, self.ids, self.ledger = problem, live, ids, ledger
        self.steps: tuple[str, ...] = ()
        self.last_score = NO_SCORE

    def fork(self, num_branches: int) -> list[SpecBranch]:
        """Raises UserError once closed, as the live branch does."""
        children = [SpecBranch(self.problem, live, self.ids, self.ledger) for live in self.live.fork(num_branches)]
        for child in children:
            child.steps, child.last_score = self.steps, self.last_score
        return children

    def close(self) -> None:
        """Raises UserError the second time."""
        self.live.close()


class SpecVerifier(ModelVerifier):
    """Scores by a spec. A step costs the verifier its own tokens, and only the score rows go through the head.

    Where a step changes ids before it (merges over the seam) the branch goes back to the last run of
    tokens that is still right, and appends from there.
    """

    def __init__(self, llm: LLM, layout: Layout, shares_steps: bool = True):
        super().__init__(llm, shares_steps)
        self.layout, self.spec = layout, layout.spec
        self.judges = layout.spec.judges
        context = llm.config.context
        self.max_tokens = min(layout.spec.max_tokens or context, context)

    def opening(self, problem: Problem) -> list[int]:
        return self.layout.opening(problem.prompt)

    async def open(self, problem: Problem, *, ledger: Ledger) -> SpecBranch:
        """Raises UserError for a problem that the verifier's context cannot hold."""
        ids = self.opening(problem)
        return SpecBranch(problem, self.open_live(ids, ledger), ids, ledger)

    async def score(self, branches: Sequence[SpecBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """One score per step, in one forward for all branches.

        A step over the maximum length is what the spec's `overlong` says. Raises UserError for one
        where that is an error, before anything is appended.
        """
        encoded = [self._encode(branch, new) for branch, new in zip(branches, steps, strict=True)]
        live, tokens = [], []
        for branch, new, (ids, places) in zip(branches, steps, encoded, strict=True):
            branch.steps += tuple(step.text for step in new)
            if places:
                kept = self._rewind(branch, ids, places[0])
                live.append(branch.live)
                ends = [place + 1 for place in places]
                tokens.append([ids[start:end] for start, end in zip([kept, *ends], ends, strict=False)])
                branch.ids = ids if all(map(self.llm.vocabulary.holds, tokens[-1])) else ids[:kept]
        found = iter(await read_steps(self.llm, live, tokens, self.shares_steps))
        return [
            self._filled(branch, next(found) if places else [], len(new))
            for branch, new, (_, places) in zip(branches, steps, encoded, strict=True)
        ]

    def _encode(self, branch: SpecBranch, new: Sequence[Step]) -> tuple[list[int], list[int]]:
        """Ids up to the last score that fits, and the places of the new scores that fit."""
        if not new:
            return branch.ids, []
        texts = [*branch.steps, *(step.text for step in new)]
        ids, places = self.layout.encode(branch.problem.prompt, texts)
        fitting = [place for place in places[-len(new) :] if place < self.max_tokens]
        if len(fitting) < len(new) and self.spec.overlong == "error":
            raise UserError(
                f"{len(ids)} tokens of problem {branch.problem.id!r} and its steps are over the maximum of the "
                f"verifier, {self.max_tokens}"
            )
        return (ids[: fitting[-1] + 1] if fitting else ids), fitting

    def _rewind(self, branch: SpecBranch, ids: list[int], first_score: int) -> int:
        """Takes back what the new ids do not start with; how many tokens the branch still holds."""
        keep = min(num_common(branch.ids, ids), first_score)
        kept = branch.live.rewind(keep)
        if kept == 0:  # the prompt itself has changed
            branch.live.close()
            kept = max(keep, 1)
            branch.live = self.open_live(ids[:kept], branch.ledger)
        return kept

    def _filled(self, branch: SpecBranch, scores: list[float], num_steps: int) -> list[float]:
        """The scores, and what the policy for overlong texts gives in the place of those that did not fit."""
        if scores:
            branch.last_score = scores[-1]
        missing = branch.last_score if self.spec.overlong == "last" else NO_SCORE
        return [*scores, *[missing] * (num_steps - len(scores))]
