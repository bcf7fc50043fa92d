"""Problems from a JSONL file, checked line by line before anything is searched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ProblemRow:
    """A row of a problem file: what it states, and where."""

    id: str
    problem: str
    answer: str | None
    origin: str  # "problems.jsonl, line 3"

    def as_dict(self) -> dict[str, str | None]:
        return {"id": self.id, "problem": self.problem, "answer": self.answer}


def read_problems(path: str | os.PathLike[str], limit: int | None = None) -> list[ProblemRow]:
    """The rows of a file with one JSON object per line; all lines are checked, also those over `limit`.

    An object needs `problem` (a text); `answer` (a text, a number or null) and `id` (a text or an
    integer, by default the row's index) are optional, other fields are not looked at. Blank lines
    are passed over. Raises ValueError that names the file, the line and what is wrong with it.
    """
    rows: list[ProblemRow] = []
    origins: dict[str, str] = {}  # of each id
    for number, line in _lines(path):
        origin = f"{os.fspath(path)}, line {number}"
        try:
            row = _row(_parse(line), len(rows), origin)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from None
        if row.id in origins:
            raise ValueError(f"{origin}: the id {row.id!r} is taken by {origins[row.id]}")
        origins[row.id] = origin
        rows.append(row)
    if not rows:
        raise ValueError(f"{os.fspath(path)} holds no problem")
    return rows[:limit]


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ValueError(f"cannot read problems from {os.fspath(path)}: {error.strerror}") from None


def _parse(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError(f"not UTF-8 text: {_shown(line)}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}): {_shown(line)}") from None
    except RecursionError:
        raise ValueError(f"nested too deep: {_shown(line)}") from None


def _row(value: object, index: int, origin: str) -> ProblemRow:
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {_shown(value)}")
    if "problem" not in value:
        raise ValueError(f"no field 'problem', got {_shown(value)}")
    text, answer, name = value["problem"], value.get("answer"), value.get("id", index)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'problem' must be a text that is not blank, got {_shown(text)}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise ValueError(f"'answer' must be a text, a number or null, got {_shown(answer)}")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"'id' must be a text or an integer, got {_shown(name)}")
    for part in (text, answer, name):
        if isinstance(part, str):
            _check_encodable(part)
    return ProblemRow(str(name), text, None if answer is None else str(answer), origin)


def _check_encodable(text: str) -> None:
    """JSON can state half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"not valid Unicode: {_shown(text)}") from None


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace").strip()
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
