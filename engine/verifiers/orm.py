"""An outcome verifier that reads the policy's tokens, and the earlier attempts that an answer revises."""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.prompts.histories import after_attempts
from engine.runtime import Branch
from engine.runtime.policy import attempt_ids, missing_end
from engine.types import Attempt, Problem, Step
from engine.verifiers.model_verifier import read_steps
from engine.verifiers.prm import PRMVerifier


class ORMBranch:
    """The live branch, and the answers in it, each after the prompt."""

    def __init__(self, prompt: list[int], live: Branch, held: Sequence[list[int]], is_answered: bool):
        self.prompt, self.live = prompt, live
        self.held = held  # ids of answers, oldest first
        self.is_answered = is_answered  # the last of them ends the branch; else the prompt does

    def fork(self, num_branches: int) -> list[ORMBranch]:
        """Raises UserError once closed, as the live branch does."""
        forks = self.live.fork(num_branches)
        return [ORMBranch(self.prompt, live, self.held, self.is_answered) for live in forks]

    def close(self) -> None:
        """Raises UserError the second time."""
        self.live.close()


class ORMVerifier(PRMVerifier):
    """Scores a whole answer at its end of text, by the probability of the good label.

    The ids are `[prompt, attempt 1, ..., prompt, answer]`, as `ttc train orm` lays them out. An answer costs its
    own tokens, and the prompt's where it revises another. The oldest attempts are left out where the context
    cannot hold all.
    """

    judges = "answers"
    reads_history = True

    async def open(self, problem: Problem, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> ORMBranch:
        """Raises UserError for a problem that the context cannot hold."""
        attempts = filter(self.llm.vocabulary.holds, map(self._attempt_ids, history))
        return self._open(self.opening(problem), list(attempts), 1, ledger)

    async def score(self, branches: Sequence[ORMBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """One score per answer, which then is an attempt that further answers revise.

        Raises UserError for an answer over the context even without a history.
        """
        judged = [(branch, self._attempt_ids(run)) for branch, run in zip(branches, steps, strict=True) if run]
        tokens = []
        for branch, answer in judged:
            prompt = branch.prompt if branch.is_answered else []
            if branch.held and branch.live.num_tokens + len(prompt) + len(answer) > self.llm.config.context:
                ledger = branch.live.ledger
                branch.live.close()
                reopened = self._open(branch.prompt, branch.held[1:], len(answer), ledger)
                branch.live, branch.held, prompt = reopened.live, reopened.held, []
            tokens.append([*prompt, *answer])
            if self.llm.vocabulary.holds(answer):  # else it is not appended
                branch.held, branch.is_answered = [*branch.held, answer], True
        live = [branch.live for branch, _ in judged]
        found = iter(await read_steps(self.llm, live, [[ids] for ids in tokens], self.shares_steps))
        return [list(next(found)) if run else [] for run in steps]

    def _open(self, prompt: list[int], held: Sequence[list[int]], num_more: int, ledger: Ledger) -> ORMBranch:
        """A branch with as many of the latest answers as fit beside `num_more` tokens."""
        room, count = self.llm.config.context - len(prompt) - num_more, 0
        for answer in reversed(held):
            room -= len(prompt) + len(answer)
            if room < 0:
                break
            count += 1
        held = held[len(held) - count :]
        live = self.open_live(after_attempts(prompt, held), ledger)
        return ORMBranch(prompt, live, held, is_answered=False)

    def _attempt_ids(self, steps: Sequence[Step]) -> list[int]:
        if self.shares_tokens:
            return attempt_ids(steps, self.llm)
        ids = self.llm.encode("".join(step.text for step in steps), is_start=False)
        return ids + missing_end(ids, self.llm)
