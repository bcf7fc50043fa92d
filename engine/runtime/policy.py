"""The policy of a search: an LLM whose extensions are split into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache

from engine.accounting import Ledger
from engine.counts import shown
from engine.errors import UserError
from engine.prompts.histories import after_attempts, num_latest
from engine.prompts.stops import before_stops
from engine.runtime.branch import Branch
from engine.runtime.llm import LLM
from engine.runtime.requests import GeneratedTokens
from engine.runtime.steps import StepEnds
from engine.types import FINISHED, Sampling, Step

_MAX_PROMPTS = 1024  # prompts whose token ids are kept
_MAX_VARIANTS = 256  # lists of stop texts, each with a look-up over the vocabulary


def attempt_ids(attempt: Sequence[Step], llm: LLM) -> list[int]:
    """The token ids of a whole answer, its end of text included, as the context of another answer holds it."""
    ids = [token for step in attempt for token in step.token_ids]
    return ids + missing_end(ids, llm)


def missing_end(ids: Sequence[int], llm: LLM) -> list[int]:
    """The end-of-text token, if an answer lacks it because it ended at its box."""
    ends = llm.config.eos_token_ids
    return [] if not ends or ids[-1] in ends else [ends[0]]


class ModelPolicy:
    """Implements `engine.search.protocols.Policy`; `StepEnds` decides where steps end.

    `encode` turns a problem's prompt into token ids; by default it is the plain tokenizer.
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
        # Chains ask for the same one again. A text may be a conversation, which is encoded otherwise.
        self.encode = lru_cache(maxsize=_MAX_PROMPTS, typed=True)(encode or llm.encode)
        self.step_ends = StepEnds(llm, delimiter, stops_at_box)
        self._variants: dict[tuple[str, ...], ModelPolicy] = {}  # by their stop texts
        self._stop_texts: tuple[str, ...] = ()
        if llm.has_score_head:
            llm.read_trunk_head_at(self.step_ends.score_mask)

    def stopping(self, texts: tuple[str, ...]) -> ModelPolicy:
        """This policy, whose answers also end where they have one of these texts, which they leave out.

        Raises UserError for more different ones than a run has: each is a rule of the model's from then on.
        """
        if texts == self._stop_texts:
            return self
        if texts not in self._variants:
            if len(self._variants) == _MAX_VARIANTS:
                raise UserError(f"answers may end by {_MAX_VARIANTS} lists of stop texts, got another: {shown(texts)}")
            policy = self._variants[texts] = copy(self)
            policy._stop_texts = texts
            with self.llm.in_use.after_others():
                policy.step_ends = StepEnds(self.llm, self.step_ends.delimiter, self.step_ends.stops_at_box, texts)
        return self._variants[texts]

    async def open(self, prompt: str, *, ledger: Ledger, history: Sequence[tuple[Step, ...]] = ()) -> Branch:
        attempts = [attempt_ids(attempt, self.llm) for attempt in history]
        return self.llm.open(after_attempts(self.encode(prompt), attempts), ledger=ledger)

    async def prompt_state(self, branch: Branch) -> list[float]:
        request = self.llm.queue_logits([branch])
        await request
        return request.logits[0][self.llm.config.vocab_size :].tolist()

    def ask_again(self, branch: Branch, prompt: str) -> None:
        closing = missing_end(branch.segment.tokens, self.llm)
        self.llm.append([branch], [[*closing, *self.encode(prompt)]], is_lazy=True)
        branch.num_prompt_tokens = branch.num_tokens

    def num_fitting(self, prompt: str, history: Sequence[tuple[Step, ...]], max_tokens: int) -> int:
        if not history:
            return 0
        num_prompt = len(self.encode(prompt))
        sizes = [num_prompt + len(attempt_ids(attempt, self.llm)) for attempt in history]
        return num_latest(self.llm.config.context - num_prompt - max_tokens, sizes)

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
        request = self.llm.queue_generate(
            branches,
            keys,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=self.step_ends.stop(stop_at_step),
            purpose=purpose,
            priorities=priorities,
        )
        await request
        return [self.split(result) if is_split else [self._whole(result)] for result in request.results]

    def split(self, generated: GeneratedTokens) -> list[Step]:
        """The steps of an extension, by token position. Only the last can be unfinished."""
        tokens, steps, start = generated.token_ids, [], 0
        ends = self.step_ends.ends(tokens)
        if not ends or ends[-1] < len(tokens) or generated.finish in ("length", "error"):
            ends = [end for end in ends if end < len(tokens)] + [len(tokens)]
        for end in ends:
            finish = generated.finish if end == len(tokens) else "step"
            run = tokens[start:end]
            steps.append(
                Step(
                    token_ids=run,
                    text=self.llm.vocabulary.decode_part(run),
                    finish=finish,
                    logprob=sum(generated.logprobs[start:end]),
                    trunk_score=generated.trunk_scores.get(end - 1) if finish in ("step", *FINISHED) else None,
                )
            )
            start = end
        return self._cut(steps) if generated.finish == "stop" else steps

    def _cut(self, steps: list[Step]) -> list[Step]:
        """Without the stop text, which an earlier extension may begin; the step in which it starts is the last."""
        text = "".join(step.text for step in steps)
        place, num_kept = len(before_stops(text, self._stop_texts)), 0
        place = 0 if place == len(text) else place
        while num_kept < len(steps) - 1 and len(steps[num_kept].text) <= place:
            place -= len(steps[num_kept].text)
            num_kept += 1
        rest = steps[num_kept:]
        tokens = tuple(token for step in rest for token in step.token_ids)
        last = Step(tokens, rest[0].text[:place], "stop", sum(step.logprob for step in rest))
        return [*steps[:num_kept], last]

    def _whole(self, generated: GeneratedTokens) -> Step:
        text, logprob = self.llm.vocabulary.decode_part(generated.token_ids), sum(generated.logprobs)
        step = Step(generated.token_ids, text, generated.finish, logprob)
        return self._cut([step])[0] if generated.finish == "stop" else step
