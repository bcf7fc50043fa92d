"""The policy of a search that an endpoint samples for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from engine.accounting import Ledger
from engine.errors import UserError
from engine.prompts import PromptFormat
from engine.prompts.histories import num_latest
from engine.prompts.text import check_encodable
from engine.remote.model import RemoteModel
from engine.remote.requests import RemoteBranch, RemoteJob, RemoteRequest
from engine.remote.steps import TextSteps
from engine.types import Attempt, Sampling, Step

_MAX_PROMPTS = 4096  # whose number of tokens is kept
_SEED_BITS = 31  # what every server takes


class RemotePolicy:
    """Implements `engine.search.protocols.Policy` for strategies that sample whole answers.

    Each answer is a request of its own: it has a seed of its own, is tried again alone, and is the same whatever the
    budget; the prompt that all of them share is in the cache of any server that has one.
    """

    def __init__(self, model: RemoteModel, delimiter: str, prompt: PromptFormat | None):
        self.model, self.prompt = model, prompt
        self.steps = TextSteps(delimiter)
        self._num_prompt_tokens: dict[str, int] = {}  # of prompts, as the endpoint has counted them
        self._stop_texts: tuple[str, ...] = ()

    def stopping(self, texts: tuple[str, ...]) -> RemotePolicy:
        """This policy, whose answers also end before the first of these texts, as the endpoint sees to."""
        if texts == self._stop_texts:
            return self
        policy = copy(self)
        policy._stop_texts = texts
        return policy

    @property
    def is_chat(self) -> bool:
        return self.prompt is not None and self.prompt.is_served

    def encode(self, prompt: str) -> tuple[str]:
        """What the endpoint is given for a prompt, as a text. Raises UserError for what UTF-8 cannot hold."""
        return (check_encodable(prompt if self.prompt is None else self.prompt.render(prompt)),)

    async def open(self, prompt: str, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> RemoteBranch:
        turns = [text for attempt in history for text in (prompt, _text(attempt))]
        self.encode(prompt)
        return RemoteBranch((*turns, prompt), ledger)

    async def prompt_state(self, branch: RemoteBranch) -> list[float]:
        raise UserError(f"{self.model.name} does not show the hidden state that a probe reads")

    def ask_again(self, branch: RemoteBranch, prompt: str) -> None:
        branch.turns, branch.answer = (*branch.turns, branch.answer, prompt), ""

    def num_fitting(self, prompt: str, history: Sequence[Attempt], max_tokens: int) -> int:
        """All of them, where the endpoint says nothing of its context."""
        num_prompt = self._num_prompt_tokens.get(prompt)
        if self.model.context is None or num_prompt is None:
            return len(history)
        sizes = [num_prompt + sum(step.num_tokens for step in attempt) for attempt in history]
        return num_latest(self.model.context - num_prompt - max_tokens, sizes)

    async def extend(
        self,
        branches: Sequence[RemoteBranch],
        *,
        keys: Sequence[int],
        sampling: Sampling,
        stop_at_step: bool,
        max_tokens: int | Sequence[int],
        purpose: str = "generated",
        priorities: Sequence[float] | None = None,
    ) -> list[list[Step]]:
        assert not stop_at_step, "what needs forks is refused before a search begins"
        limits = [max_tokens] * len(branches) if isinstance(max_tokens, int) else max_tokens
        stops_at_box = self.prompt is not None and self.prompt.stops_at_box
        request = RemoteRequest(self.model.runner, len(branches), None, purpose, stops_at_box, [None] * len(branches))
        for index, (branch, key, limit) in enumerate(zip(branches, keys, limits, strict=True)):
            path, asked = self._asked(branch)
            body = {"model": self.model.model, **asked, "max_tokens": limit, **_options(sampling, key)}
            body |= {"stop": list(self._stop_texts)} if self._stop_texts else {}
            self.model.runner.submit(RemoteJob(request, index, branch, path, body))
        await request
        return [self._taken(*each) for each in zip(branches, request.results, strict=True)]

    def _asked(self, branch: RemoteBranch) -> tuple[str, dict]:
        """The route, and what is asked there."""
        if not self.is_chat:
            (prompt,) = branch.turns  # revisions of a text that is no conversation are refused
            return "/completions", {"prompt": self.encode(prompt)[0]}
        roles = ("user", "assistant")
        turns = [{"role": roles[place % 2], "content": text.strip()} for place, text in enumerate(branch.turns)]
        return "/chat/completions", {"messages": self.prompt.conversation(turns)}

    def _taken(self, branch: RemoteBranch, sampled) -> list[Step]:
        branch.answer = sampled.text
        num_prompt = sampled.usage.get("prompt_tokens")
        if len(branch.turns) == 1 and type(num_prompt) is int:
            if len(self._num_prompt_tokens) >= _MAX_PROMPTS:
                self._num_prompt_tokens.clear()
            self._num_prompt_tokens[branch.turns[0]] = num_prompt
        return self.steps.split(sampled.text, sampled.num_tokens, sampled.finish or "length")


def _text(attempt: Attempt) -> str:
    return "".join(step.text for step in attempt)


def _options(sampling: Sampling, key: int) -> dict:
    """How an answer is sampled; what not every server knows is only sent where it has an effect."""
    options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": key % (1 << _SEED_BITS)}
    options |= {"top_k": sampling.top_k} if sampling.top_k else {}
    options |= {"min_p": sampling.min_p} if sampling.min_p else {}
    return options | {"stream": True, "stream_options": {"include_usage": True}}
