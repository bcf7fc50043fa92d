"""The steps of a text whose tokens are not known."""

from __future__ import annotations

import re

from engine.errors import UserError
from engine.types import Step

_MAX_DELIMITER = 64  # characters


class TextSteps:
    """Splits answers at a delimiter. Blank lines make no step; lines may end in a carriage return and a line feed."""

    def __init__(self, delimiter: str):
        if not 1 <= len(delimiter) <= _MAX_DELIMITER:
            raise UserError(f"a step delimiter has 1 to {_MAX_DELIMITER} characters, got {delimiter!r}")
        pattern = re.escape(delimiter)
        self._end = re.compile(pattern if "\r" in delimiter else pattern.replace("\\\n", "\r?\n"))

    def split(self, text: str, num_tokens: int, finish: str) -> list[Step]:
        """The steps of an answer, of which only the last can be unfinished; there is at least one.

        The tokens are divided by the steps' lengths. An end of text after a delimiter is a step of its own, as it is
        where tokens are known.
        """
        ends = [end for end in self._ends(text) if finish == "eos" or end < len(text)] + [len(text)]
        starts = [0, *ends[:-1]]
        counts = _shares(num_tokens, ends, 1 if finish == "eos" else 0)
        finishes = ["step"] * (len(ends) - 1) + [finish]
        return [
            Step((), text[start:end], each, num_unknown=count)
            for start, end, each, count in zip(starts, ends, finishes, counts, strict=True)
        ]

    def _ends(self, text: str) -> list[int]:
        """The places after the delimiters that end a step."""
        ends, start = [], 0
        for found in self._end.finditer(text):
            if text[start : found.end()].strip():
                ends.append(start := found.end())
        return ends


def _shares(num_tokens: int, ends: list[int], num_last: int) -> list[int]:
    """Tokens for each of the steps that end at these characters, `num_last` of them for the end of the last one."""
    num_last = min(num_last, num_tokens)
    length = max(1, ends[-1])
    marks = [(num_tokens - num_last) * end // length for end in ends[:-1]] + [num_tokens]
    return [mark - before for before, mark in zip([0, *marks], marks, strict=False)]
