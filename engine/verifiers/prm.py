"""A process reward model of its own: its KV forks in lockstep with the policy's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.accounting import Ledger
from engine.errors import UserError
from engine.runtime import LLM, Branch
from engine.types import Problem, Step
from engine.verifiers.model_verifier import ModelVerifier, read_steps

if TYPE_CHECKING:
    from engine.remote import RemoteModel


class PRMVerifier(ModelVerifier):
    """Scores a step at its last token, by the probability of the good label.

    A step costs the verifier its own tokens and nothing else; only the score rows go through the
    head. Where policy and PRM share a vocabulary the policy's token ids are used as they are. Of an endpoint, which
    tells texts alone, a verifier that has a token for each character finds the same ids; any other is refused.
    """

    def __init__(self, llm: LLM, policy: LLM | RemoteModel, shares_steps: bool = True):
        if not llm.has_score_head or llm.has_lm_head:
            raise UserError(f"the model at {llm.folder} is not a step verifier (a *ForTokenClassification)")
        super().__init__(llm, shares_steps)
        if policy.tokenizer is None and not llm.vocabulary.is_of_characters:
            raise UserError(
                f"the verifier at {llm.folder} reads the tokens that a policy samples, and {policy.folder} tells texts "
                "alone: name a verifier with a text format"
            )
        vocabulary = None if policy.tokenizer is None else policy.tokenizer.get_vocab()
        self.shares_tokens = vocabulary == llm.tokenizer.get_vocab()

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
