"""What an endpoint streams: pieces of a text, its end, and what it was charged for."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.prompts import has_closed_box


@dataclass
class Sampled:
    """An answer as far as it has come. The loop's thread adds to it, others read it."""

    parts: list[str] = field(default_factory=list)
    num_pieces: int = 0  # events with a piece of text, of which most hold one token
    usage: dict = field(default_factory=dict)
    finish: str | None = None  # as `Step.finish`, once it has ended
    num_lost: int = 0  # pieces of tries that broke off

    def restart(self) -> None:
        """Forgets what a try has brought."""
        self.parts, self.usage, self.finish = [], {}, None
        self.num_lost, self.num_pieces = self.num_lost + self.num_pieces, 0

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def num_tokens(self) -> int:
        """As the endpoint has counted them, thoughts included; before it has, the number of pieces."""
        return _count(self.usage, "completion_tokens") or self.num_pieces

    def add(self, event: dict, stops_at_box: bool) -> None:
        """Takes an event of a stream, or a whole answer. What was thought before an answer counts, and is left out."""
        self.usage = event.get("usage") or self.usage
        for choice in (event.get("choices") or ())[:1]:
            said = choice.get("delta") or choice.get("message") or choice
            piece = said.get("content") or said.get("text") or ""
            if piece or said.get("reasoning_content") or said.get("reasoning"):
                self.num_pieces += 1
            if piece:
                self.parts.append(piece)
            if stops_at_box and "}" in piece and has_closed_box(self.text):
                self.finish = "boxed"
            elif (reason := choice.get("finish_reason")) not in (None, "abort"):
                self.finish = "eos" if reason == "stop" else "length"  # "content_filter" cuts an answer off too


@dataclass(frozen=True)
class Bill:
    """Tokens of one request: sampled, of the prompt computed, and of the prompt found in a cache."""

    sampled: int
    prompt: int
    cached: int
    estimated: frozenset[str]  # "sampled", "prompt", "cached": those that the endpoint has not counted


def bill(sampled: Sampled) -> Bill:
    """What a request has cost. An endpoint that does not tell what its cache held may have computed less."""
    usage = sampled.usage
    prompt, cached = _count(usage, "prompt_tokens"), _count(usage.get("prompt_tokens_details") or {}, "cached_tokens")
    told = {"sampled": _count(usage, "completion_tokens"), "prompt": prompt and cached, "cached": cached}
    missing = frozenset(name for name, count in told.items() if count is None)
    return Bill(sampled.num_tokens, max(0, (prompt or 0) - (cached or 0)), cached or 0, missing)


def _count(usage: dict, name: str) -> int | None:
    count = usage.get(name)
    return count if type(count) is int and count >= 0 else None
