"""Recognises a complete `\\boxed{…}`, whose braces are balanced."""

from __future__ import annotations

_OPENING = "\\boxed{"


def has_closed_box(text: str) -> bool:
    """Whether the first `\\boxed{` of a text is closed; escaped braces do not count."""
    start = text.find(_OPENING)
    if start < 0:
        return False
    depth, is_escaped = 1, False
    for character in text[start + len(_OPENING) :]:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        else:
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return True
    return False
