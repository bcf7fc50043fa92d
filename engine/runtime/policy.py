"""The policy that searches speak to: an LLM whose samples are split into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.accounting import Ledger
from engine.runtime.llm import LLM, Branch
from engine.runtime.requests import Sampled
from engine.runtime.steps import StepEnds
from engine.types import FINISHED, Sampling, Step


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
        self.encode = encode or llm.encode
        self.step_ends = StepEnds(llm, delimiter, stops_at_box)
        if llm.runner.score_head is not None:
            llm.runner.stops.score_at(self.step_ends.score_mask)

    async def open(self, prompt: str, *, ledger: Ledger) -> Branch:
        return self.llm.open(self.encode(prompt), ledger=ledger)

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
        return [self.split(sampled) for sampled in request.results]

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

    def _trunk_scores(self, sampled: Sampled) -> dict[int, float]:
        """By the index of the token at which each was read."""
        is_scored = self.llm.runner.stops.is_scored
        if is_scored is None or not sampled.trunk_scores:
            return {}
        places = [i for i, token in enumerate(sampled.token_ids) if is_scored[token]]
        return dict(zip(places, sampled.trunk_scores, strict=True))
