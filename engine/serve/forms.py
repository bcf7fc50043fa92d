"""The two forms of OpenAI's answers: chats and texts, whole and in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from engine.runtime import LLM
from engine.serve.answers import Choice

Json = dict[str, object]


@dataclass(frozen=True)
class Part:
    """What a chunk adds to a choice: text, its tokens where logprobs are wanted, and at last why it ends."""

    index: int
    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    finish_reason: str | None = None
    is_first: bool = False
    offset: int = 0  # characters before it


@dataclass(frozen=True)
class Form(ABC):
    """Writes choices; `llm` names tokens."""

    llm: LLM
    id: str
    created: int  # Unix seconds
    model: str
    wants_logprobs: bool

    prefix: ClassVar[str]  # of ids
    whole: ClassVar[str]  # `object` of an answer
    chunk: ClassVar[str]  # `object` of a part of one

    def head(self, kind: str) -> Json:
        """What every answer and chunk begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def choice(self, index: int, choice: Choice) -> Json:
        """A whole choice."""
        sample = choice.sample
        tokens = (sample.token_ids, sample.logprobs) if sample is not None else ((), ())
        return {
            "index": index,
            **self.content(choice.text),
            "logprobs": self._logprobs(*tokens, 0),
            "finish_reason": choice.finish_reason,
        }

    def part(self, part: Part) -> Json:
        """A part of a choice."""
        return {
            "index": part.index,
            **self.delta(part),
            "logprobs": self._logprobs(part.token_ids, part.logprobs, part.offset) if part.token_ids else None,
            "finish_reason": part.finish_reason,
        }

    @abstractmethod
    def content(self, text: str) -> Json:
        """The field that holds a text."""

    @abstractmethod
    def delta(self, part: Part) -> Json:
        """The field that holds a part of one."""

    @abstractmethod
    def tokens(self, texts: Sequence[str], logprobs: Sequence[float], offset: int) -> Json:
        """Log-probabilities of tokens; `offset` is the number of characters before them."""

    def _logprobs(self, token_ids: Sequence[int], logprobs: Sequence[float], offset: int) -> Json | None:
        if not self.wants_logprobs:
            return None
        return self.tokens([self.llm.vocabulary.decode_part([token]) for token in token_ids], logprobs, offset)


class ChatForm(Form):
    """Of /v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def content(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, part: Part) -> Json:
        role = {"role": "assistant"} if part.is_first else {}
        return {"delta": {**role, **({"content": part.text} if part.text or part.is_first else {})}}

    def tokens(self, texts: Sequence[str], logprobs: Sequence[float], offset: int) -> Json:
        """A token that is a part of a character has no bytes of its own to show."""
        entries = [
            {
                "token": text,
                "logprob": logprob,
                "bytes": None if "\ufffd" in text else list(text.encode()),
                "top_logprobs": [],
            }
            for text, logprob in zip(texts, logprobs, strict=True)
        ]
        return {"content": entries, "refusal": None}


class TextForm(Form):
    """Of /v1/completions."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def content(self, text: str) -> Json:
        return {"text": text}

    def delta(self, part: Part) -> Json:
        return {"text": part.text}

    def tokens(self, texts: Sequence[str], logprobs: Sequence[float], offset: int) -> Json:
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {"tokens": list(texts), "token_logprobs": list(logprobs), "top_logprobs": None, "text_offset": offsets}
