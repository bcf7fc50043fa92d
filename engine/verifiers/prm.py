"""A process reward model of its own: its KV forks in lockstep with the policy's."""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.runtime import LLM, Branch
from engine.types import Problem, Step


class PRMVerifier:
    """Scores a step at its last token, by the probability of the good label.

    A step costs the verifier its own tokens and nothing else; only the score rows go through the
    head. Where policy and PRM share a vocabulary the policy's token ids are used as they are.
    """

    def __init__(self, llm: LLM, policy: LLM):
        if llm.runner.score_head is None or llm.runner.lm_head is not None:
            raise ValueError(f"the model at {llm.folder} is not a step verifier (a *ForTokenClassification)")
        self.llm = llm
        self.shares_tokens = llm.tokenizer.get_vocab() == policy.tokenizer.get_vocab()

    def opening(self, problem: Problem) -> list[int]:
        """The ids that a branch is opened with."""
        return self.llm.encode(problem.prompt)

    async def open(self, problem: Problem, *, ledger: Ledger) -> Branch:
        return self.llm.open(problem.prompt, ledger=ledger, purpose="verified")

    async def score(self, branches: Sequence[Branch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """One score per step, in one forward for all branches. Raises ValueError for a text over the context."""
        tokens: list[list[int]] = []
        ends: list[list[int]] = []
        for run in steps:
            flat: list[int] = []
            ends.append([])
            for step in run:
                flat += self._tokens(step)
                ends[-1].append(len(flat) - 1)
            tokens.append(flat)
        request = self.llm.append(branches, tokens, ends, purpose="verified")
        await request
        return request.scores

    def _tokens(self, step: Step) -> Sequence[int]:
        if self.shares_tokens:
            return step.token_ids
        ids = self.llm.encode(step.text, is_start=False)
        return ids + list(self.llm.config.eos_token_ids[:1]) if step.finish == "eos" else ids
