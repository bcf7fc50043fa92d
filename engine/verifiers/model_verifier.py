"""The base of verifiers over a model of their own: how branches are opened, and how steps are read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from copy import copy

from engine.accounting import Ledger
from engine.runtime import LLM, Branch
from engine.verifiers.base import Verifier
from engine.verifiers.step_cache import StepCache

NO_SCORE = math.nan  # flags an answer, which is then left out


class ModelVerifier(Verifier):
    """A verifier over `llm`.

    With `shares_steps` a step that several branches have at the same place is read once for all of them: branches
    that were forked from one another, and with `shares_roots` also those that were opened apart.
    """

    shares_roots = False

    def __init__(self, llm: LLM, shares_steps: bool = True):
        self.llm, self.shares_steps = llm, shares_steps

    def cached(self) -> AbstractContextManager[Verifier]:
        if not self.shares_steps:
            return nullcontext(self)
        twin = copy(self)
        twin.shares_roots = True
        return closing(StepCache(twin))

    def open_live(self, prompt: str | list[int], ledger: Ledger) -> Branch:
        """A live branch of the model. Raises UserError for a prompt that its context cannot hold."""
        return self.llm.open(prompt, ledger=ledger, purpose="verified", is_shared=self.shares_roots)


async def read_steps(
    llm: LLM, branches: Sequence[Branch], steps: Sequence[Sequence[Sequence[int]]], is_shared: bool
) -> list[list[float]]:
    """Appends steps to each branch, given by their tokens; the score at the last token of each step.

    `is_shared`: a step that several branches have at the same place is read once. A step without tokens has the score
    of the token before it, so that then none is shared. Where the model has no embedding for a token of a branch's
    steps, all of them get NO_SCORE and the branch is left as it is.
    """
    readable = [all(map(llm.vocabulary.holds, run)) for run in steps]
    branches = [branch for branch, is_read in zip(branches, readable, strict=True) if is_read]
    runs = [run for run, is_read in zip(steps, readable, strict=True) if is_read]
    if is_shared and all(all(map(len, run)) for run in runs):
        request = llm.queue_append_steps(branches, runs)
    else:
        tokens = [[token for step in run for token in step] for run in runs]
        ends = [[end - 1 for end in itertools.accumulate(map(len, run))] for run in runs]
        request = llm.queue_append(branches, tokens, score_at=ends, purpose="verified")
    await request
    scores = iter(request.scores)
    return [next(scores) if is_read else [NO_SCORE] * len(run) for run, is_read in zip(steps, readable, strict=True)]
