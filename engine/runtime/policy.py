"""The policy that searches speak to: an LLM whose samples are split into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from engine.accounting import Ledger
from engine.prompts.histories import after_attempts
from engine.runtime.llm import LLM, Branch
from engine.runtime.requests import Sampled
from engine.runtime.steps import StepEnds
from engine.types import FINISHED, Sampling, Step

_MAX_PROMPTS = 1024  # whose token ids are kept


def attempt_ids(attempt: Sequence[Step], llm: LLM) -> list[int]:
    """The token ids of a whole answer as it stands in the context of another one: its end of text included."""
    ids = [token for step in attempt for token in step.token_ids]
    return ids + missing_end(ids, llm)


def missing_end(ids: Sequence[int], llm: LLM) -> list[int]:
    """The end-of-text token that an answer lacks which ended with its box."""
    ends = llm.config.eos_token_ids
    return [] if not ends or ids[-1] in ends else [ends[0]]


class ModelPolicy:
    """Implements `engine.search.protocols.Policy`; where steps end is said by `StepEnds`.

    `encode` makes token ids of a problem's prompt, by default the tokenizer as it is.
    """

    def __init__(
        self,
        llm: LLM,
        delimiter: str = "\n",
        *,
        encode: Callable[[str], list[int]] | None = None,
        stops_at_box: bool = False,
    ):
        self.llm = llm
        self.encode = lru_cache(maxsize=_MAX_PROMPTS)(encode or llm.encode)  # chains ask for the same one again
        self.step_ends = StepEnds(llm, delimiter, stops_at_box)
        if llm.runner.score_head is not None:
            llm.runner.stops.score_at(self.step_ends.score_mask)

    async def open(self, prompt: str, *, ledger: Ledger, history: Sequence[tuple[Step, ...]] = ()) -> Branch:
        attempts = [attempt_ids(attempt, self.llm) for attempt in history]
        return self.llm.open(after_attempts(self.encode(prompt), attempts), ledger=ledger)

    def ask_again(self, branch: Branch, prompt: str) -> None:
        closing = missing_end(branch.segment.tokens, self.llm)
        self.llm.put(branch, [*closing, *self.encode(prompt)])
        branch.num_prompt_tokens = branch.num_tokens

    def num_fitting(self, prompt: str, history: Sequence[tuple[Step, ...]], max_tokens: int) -> int:
        if not history:
            return 0
        num_prompt = len(self.encode(prompt))
        room, count = self.llm.config.context - num_prompt - max_tokens, 0
        for attempt in reversed(history):
            room -= num_prompt + len(attempt_ids(attempt, self.llm))
            if room < 0:
                break
            count += 1
        return count

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
        is_split: bool = True,  # else each extension is one step, however many it has
    ) -> list[list[Step]]:
        request = self.llm.sample(
            branches,
            keys,
            sampling,
            (),
            max_tokens,
            purpose,
            priorities,
            rule=self.step_ends.rule(stop_at_step),
            confirm=self.step_ends.confirm(stop_at_step),
        )
        await request
        return [self.split(sampled) if is_split else [self._whole(sampled)] for sampled in request.results]

    def split(self, sampled: Sampled) -> list[Step]:
        """The steps of an extension, by token position. Only the last can be unfinished."""
        tokens, steps, start = sampled.token_ids, [], 0
        ends, scores = self.step_ends.ends(tokens), self._trunk_scores(sampled)
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
                    trunk_score=scores.get(end - 1) if finish in ("step", *FINISHED) else None,
                )
            )
            start = end
        return steps

    def _whole(self, sampled: Sampled) -> Step:
        text, logprob = self.llm.decode(sampled.token_ids), sum(sampled.logprobs)
        return Step(sampled.token_ids, text, sampled.finish, logprob)

    def _trunk_scores(self, sampled: Sampled) -> dict[int, float]:
        """By the index of the token at which each was read."""
        if not sampled.trunk_scores:
            return {}
        is_scored = self.llm.runner.stops.is_scored
        places = np.flatnonzero(is_scored[np.array(sampled.token_ids)]).tolist()
        return dict(zip(places, sampled.trunk_scores, strict=True))
