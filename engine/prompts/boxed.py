r"""The answer in a box, `\boxed{…}` with balanced braces; and what a thinking model states after its thoughts.

Everything here takes time linear in the text, a tenth of a second for a million characters: a model may write anything,
and a search looks at every closing brace that it samples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    boxes = _Boxes.of(text)
    closed = [] if boxes is None else boxes.starts[boxes.is_closed]
    return boxes.content(text, closed[-1]) if len(closed) else None


def has_closed_box(text: str) -> bool:
    r"""Whether the first filled `\boxed{` outside the thoughts of a text has its closing brace.

    Escaped braces are part of what a box holds.
    """
    boxes = _Boxes.of(after_thoughts(text)) if _may_hold_box(text) else None
    return boxes is not None and bool(boxes.is_closed[0])


def _may_hold_box(text: str) -> bool:
    """False for most texts, at once."""
    return "\\boxed" in text or "\\fbox" in text


@dataclass(frozen=True)
class _Boxes:
    """The filled boxes of a text, closed or not, that begin before its last closing brace."""

    starts: np.ndarray  # of the contents
    is_closed: np.ndarray  # of each box
    depth: np.ndarray  # of braces, after each character

    @classmethod
    def of(cls, text: str) -> _Boxes | None:
        """The boxes, or None where there is none."""
        if not _may_hold_box(text):
            return None
        bare = text.replace(r"\\", "xx").replace(r"\{", "xx").replace(r"\}", "xx")  # without what is escaped
        bare = bare[: bare.rfind("}") + 1]
        found = [box.end() for box in _FILLED.finditer(bare)]
        if not found:
            return None
        import numpy as np  # here, because `ttc --help` imports this module and needs no arrays

        codes = np.frombuffer(bare.encode("utf-32-le", "surrogatepass"), np.uint32)
        depth = np.cumsum((codes == ord("{")).astype(np.int32) - (codes == ord("}")), dtype=np.int32)
        lowest = np.minimum.accumulate(depth[::-1])[::-1]  # from each character on
        starts = np.array(found)
        return cls(starts, lowest[starts] < depth[starts - 1], depth)

    def content(self, text: str, start: int) -> str:
        """What the closed box holds whose content starts there."""
        return text[start : start + int((self.depth[start:] < self.depth[start - 1]).argmax())]
