"""What frameworks are told of an answer's text."""

from __future__ import annotations

from collections.abc import Sequence


def before_stops(text: str, stops: Sequence[str]) -> str:
    """A text as far as the first of the texts that end it."""
    found = [place for place in map(text.find, filter(None, stops)) if place >= 0]
    return text[: min(found, default=None)]
