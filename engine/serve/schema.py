"""The bodies of requests. A field that is not honoured is refused; one that is null, or asks for nothing, is absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from engine.serve.config import MAX_CHOICES

# Values of other fields that ask for nothing; any other value of them is refused.
_NOTHING = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "functions": [],
    "store": False,
    "metadata": {},
    "echo": False,
    "suffix": "",
}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _check_none_kept(num_alternatives: int) -> int:
    if num_alternatives:
        raise ValueError(f"only log-probabilities of sampled tokens are known, got {num_alternatives} alternatives")
    return num_alternatives


_Texts = BeforeValidator(_as_list, json_schema_input_type=str | list[str])
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_NumAlternatives = Annotated[int, AfterValidator(_check_none_kept)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, body: Any) -> Any:
        if not isinstance(body, Mapping):
            return body
        return {
            name: value
            for name, value in body.items()
            if value is not None and not (name in _NOTHING and value == _NOTHING[name])
        }


class StreamOptions(_Strict):
    include_usage: bool = False


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart])]
    name: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class Body(_Strict):
    """What both kinds of completions share."""

    model: str
    """One of /v1/models, or NAME@STRATEGY-BUDGET."""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    """Samples; of a search, ranked answers that are returned."""
    seed: int | None = None
    """By default a random one."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: Annotated[list[_Stop], Field(max_length=4), _Texts] = []
    """Texts before which a sample ends; of plain samples alone."""
    max_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted, and not looked at."""
    ttc: dict[str, Any] | None = None
    """The search: strategy, budget, options of the strategy, verifier, agg_strategy, deadline_s, return, progress."""

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _check_stream(self) -> Body:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has no effect without stream")
        return self


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: _NumAlternatives = 0
    """0 alone: the logits are not kept."""

    @model_validator(mode="after")
    def _check(self) -> ChatBody:
        if self.max_completion_tokens is not None and self.max_tokens is not None:
            raise ValueError("max_completion_tokens and max_tokens are one limit: name one of them")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs


class TextBody(Body):
    """POST /v1/completions."""

    prompt: Annotated[list[str], Field(min_length=1, max_length=1), _Texts]
    """One text."""
    logprobs: _NumAlternatives | None = None
    """0 alone, those of the sampled tokens: the logits are not kept."""

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer."""
        return self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None
