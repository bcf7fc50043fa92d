"""A process reward model of its own: its KV forks in lockstep with the policy's."""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.errors import UserError
from engine.runtime import LLM, Branch
from engine.types import Problem, Step
from engine.verifiers.model_verifier import ModelVerifier, read_steps


class PRMVerifier(ModelVerifier):
    """Scores a step at its last token, by the probability of the good label.

    A step costs the verifier its own tokens and nothing else; only the score rows go through the
    head. Where policy and PRM share a vocabulary the policy's token ids are used as they are.
    """

    def __init__(self, llm: LLM, policy: LLM, shares_steps: bool = True):
        if not llm.has_score_head or llm.has_lm_head:
            raise UserError(f"the model at {llm.folder} is not a step verifier (a *ForTokenClassification)")
        super().__init__(llm, shares_steps)
        self.shares_tokens = llm.tokenizer.get_vocab() == policy.tokenizer.get_vocab()

    def opening(self, problem: Problem) -> list[int]:
        return self.llm.encode(problem.prompt)

    async def open(self, problem: Problem, *, ledger: Ledger) -> Branch:
        return self.open_live(problem.prompt, ledger)

    async def score(self, branches: Sequence[Branch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """One score per step, in one forward for all branches. Raises UserError for a text over the context."""
        tokens = [[self._tokens(step) for step in run] for run in steps]
        return await read_steps(self.llm, branches, tokens, self.shares_steps)

    def _tokens(self, step: Step) -> Sequence[int]:
        if self.shares_tokens:
            return step.token_ids
        ids = self.llm.encode(step.text, is_start=False)
        return ids + list(self.llm.config.eos_token_ids[:1]) if step.finish == "eos" else ids
