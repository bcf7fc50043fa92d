"""Texts that end an answer, such as the start of a next question, and which it then leaves out."""

from __future__ import annotations

from collections.abc import Sequence


def before_stops(text: str, stops: Sequence[str]) -> str:
    """A text as far as the first of the texts that end it; an empty one ends nothing."""
    found = [place for place in map(text.find, filter(None, stops)) if place >= 0]
    return text[: min(found, default=None)]
