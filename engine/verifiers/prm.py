"""A process reward model of its own: its KV forks in lockstep with the policy's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from engine.accounting import Ledger
from engine.errors import UserError
from engine.runtime import LLM, Branch
from engine.types import Problem, Step


class PRMVerifier:
    """Scores a step at its last token, by the probability of the good label.

    A step costs the verifier its own tokens and nothing else; only the score rows go through the
    head. Where policy and PRM share a vocabulary the policy's token ids are used as they are.
    With `shares_steps` a step that several branches say at the same place is read once for all of them.
    """

    def __init__(self, llm: LLM, policy: LLM, shares_steps: bool = True):
        if not llm.has_score_head or llm.has_lm_head:
            raise UserError(f"the model at {llm.folder} is not a step verifier (a *ForTokenClassification)")
        self.llm = llm
        self.shares_steps = shares_steps
        self.shares_roots = False  # between branches of the same problem that were opened apart
        self.shares_tokens = llm.tokenizer.get_vocab() == policy.tokenizer.get_vocab()

    def opening(self, problem: Problem) -> list[int]:
        """The ids that a branch is opened with."""
        return self.llm.encode(problem.prompt)

    async def open(self, problem: Problem, *, ledger: Ledger) -> Branch:
        return self.llm.open(problem.prompt, ledger=ledger, purpose="verified", is_shared=self.shares_roots)

    async def score(self, branches: Sequence[Branch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """One score per step, in one forward for all branches. Raises UserError for a text over the context."""
        tokens = [[self._tokens(step) for step in run] for run in steps]
        return await read_steps(self.llm, branches, tokens, self.shares_steps)

    def _tokens(self, step: Step) -> Sequence[int]:
        if self.shares_tokens:
            return step.token_ids
        ids = self.llm.encode(step.text, is_start=False)
        return ids + list(self.llm.config.eos_token_ids[:1]) if step.finish == "eos" else ids


async def read_steps(
    llm: LLM, branches: Sequence[Branch], steps: Sequence[Sequence[Sequence[int]]], is_shared: bool
) -> list[list[float]]:
    """Appends steps to each branch, given by their tokens; the score at the last token of each.

    `is_shared`: one that several branches say at the same place is read once. Not where a step has no tokens, whose
    score is that of the token before it.
    """
    if is_shared and all(all(map(len, run)) for run in steps):
        request = llm.queue_append_steps(branches, steps)
    else:
        tokens = [[token for step in run for token in step] for run in steps]
        ends = [[end - 1 for end in itertools.accumulate(map(len, run))] for run in steps]
        request = llm.queue_append(branches, tokens, score_at=ends, purpose="verified")
    await request
    return request.scores
