r"""The answer in a box, `\boxed{…}` with balanced braces; and what a thinking model states after its thoughts.

Everything here takes time linear in the text, a tenth of a second for a million characters: a model may write anything,
and a search looks at every closing brace that it samples.
"""

from __future__ import annotations

import re

import numpy as np

_THOUGHT = re.compile(r"<(/?)think(?:ing)?>")
# An empty box, or one with dots, only repeats how answers are to be written.
_FILLED = re.compile(r"\\(?:boxed|fbox)\s*+\{(?!\s*+(?:(?:\.\.\.|…|\\l?dots)\s*+)?\})")


def after_thoughts(text: str) -> str:
    """What a completion states outside its thoughts: all after the last `</think>`, up to a `<think>` left open."""
    start, end = 0, len(text)
    for mark in _THOUGHT.finditer(text):
        if mark[1]:
            start, end = mark.end(), len(text)
        elif end == len(text):
            end = mark.start()
    return text[start:end]


def last_box(text: str) -> str | None:
    r"""The content of the last filled `\boxed{…}` or `\fbox{…}` whose braces balance, nested ones included, or None."""
    starts, depth = _boxes(text)
    if not len(starts):
        return None
    lowest = np.minimum.accumulate(depth[::-1])[::-1]  # from here on
    closed = starts[lowest[starts] < depth[starts - 1]]
    return _content(text, closed[-1], depth) if len(closed) else None


def has_closed_box(text: str) -> bool:
    r"""Whether the first filled `\boxed{` outside the thoughts of a text has its closing brace.

    Escaped braces are part of what a box holds.
    """
    text = after_thoughts(text)
    starts, depth = _boxes(text)
    return len(starts) > 0 and _content(text, starts[0], depth) is not None


def _boxes(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the content of each filled box starts, and the depth of braces after each character.

    Up to the last closing brace: what comes after it closes no box.
    """
    bare = text.replace(r"\\", "xx").replace(r"\{", "xx").replace(r"\}", "xx")  # without what is escaped
    bare = bare[: bare.rfind("}") + 1]
    starts = np.array([box.end() for box in _FILLED.finditer(bare)], int)
    if not len(starts):
        return starts, starts
    codes = np.frombuffer(bare.encode("utf-32-le", "surrogatepass"), np.uint32)
    return starts, np.cumsum((codes == ord("{")).astype(np.int32) - (codes == ord("}")), dtype=np.int32)


def _content(text: str, start: int, depth: np.ndarray) -> str | None:
    """What the box holds whose content starts there; None where it is not closed."""
    is_closed = depth[start:] < depth[start - 1]
    end = int(is_closed.argmax())
    return text[start : start + end] if is_closed[end] else None
