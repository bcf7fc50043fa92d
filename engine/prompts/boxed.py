"""The answer in a box, `\boxed{…}` with balanced braces; and what a thinking model states after its thoughts."""

from __future__ import annotations

import re

_OPENING = "\\boxed{"
_THOUGHT = re.compile(r"<(/?)think(?:ing)?>")
_PLACEHOLDERS = ("", "...", "…", r"\ldots", r"\dots")


def after_thoughts(text: str) -> str:
    """What a completion states outside its thoughts: all after the last `</think>`, up to a `<think>` left open."""
    start, end = 0, len(text)
    for mark in _THOUGHT.finditer(text):
        if mark[1]:
            start, end = mark.end(), len(text)
        elif end == len(text):
            end = mark.start()
    return text[start:end]


def is_filled(content: str) -> bool:
    """Whether a box states something: an empty one, or one with dots, only repeats how answers are to be written."""
    return content.strip() not in _PLACEHOLDERS


def has_closed_box(text: str) -> bool:
    """Whether a filled `\\boxed{` outside the thoughts of a text has its closing brace.

    Escaped braces are part of what a box holds.
    """
    text = after_thoughts(text)
    start = text.find(_OPENING)
    while start >= 0:
        end = _closing(text, start + len(_OPENING))
        if end is None:
            return False
        if is_filled(text[start + len(_OPENING) : end]):
            return True
        start = text.find(_OPENING, end)
    return False


def _closing(text: str, start: int) -> int | None:
    """Where the brace is that closes what was opened before `start`."""
    depth, is_escaped = 1, False
    for index in range(start, len(text)):
        character = text[index]
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        else:
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return index
    return None
