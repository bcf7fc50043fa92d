"""The policy that searches speak to: an LLM whose samples are split into steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.accounting import Ledger
from engine.runtime.llm import LLM, Branch
from engine.runtime.requests import Sampled
from engine.types import Sampling, Step


class ModelPolicy:
    """Implements `engine.search.protocols.Policy`. A step ends in a token that contains `delimiter`."""

    def __init__(self, llm: LLM, delimiter: str = "\n"):
        self.llm = llm
        self.delimiter = delimiter
        mask = llm.token_mask([delimiter])
        self.delimiters = frozenset(np.flatnonzero(mask).tolist())  # token ids
        if llm.runner.score_head is not None:
            llm.runner.stops.score_at(mask)

    async def open(self, prompt: str, *, ledger: Ledger) -> Branch:
        return self.llm.open(prompt, ledger=ledger)

    async def extend(
        self,
        branches: Sequence[Branch],
        *,
        keys: Sequence[int],
        sampling: Sampling,
        stop_at_step: bool,
        max_tokens: int | Sequence[int],
        purpose: str = "generated",
        priorities: Sequence[float] | None = None,
    ) -> list[list[Step]]:
        stop = (self.delimiter,) if stop_at_step else ()
        request = self.llm.sample(branches, keys, sampling, stop, max_tokens, purpose, priorities)
        await request
        return [self.split(sampled) for sampled in request.results]

    def split(self, sampled: Sampled) -> list[Step]:
        """The steps of an extension, by token position. Only the last can be unfinished."""
        tokens, steps, start, scores = sampled.token_ids, [], 0, iter(sampled.trunk_scores)
        ends = [end for end, token in enumerate(tokens, start=1) if token in self.delimiters]
        if not ends or ends[-1] < len(tokens) or sampled.finish in ("length", "error"):
            ends = [end for end in ends if end < len(tokens)] + [len(tokens)]
        for end in ends:
            finish = sampled.finish if end == len(tokens) else "step"
            run = tokens[start:end]
            steps.append(
                Step(
                    token_ids=run,
                    text=self.llm.decode(run),
                    finish=finish,
                    logprob=sum(sampled.logprobs[start:end]),
                    trunk_score=next(scores, None) if finish in ("step", "eos") else None,
                )
            )
            start = end
        return steps
