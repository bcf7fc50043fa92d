"""Reads problems from files and data sets, and checks all of them before any is searched."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from engine.errors import UserError
from engine.prompts.text import check_encodable
from engine.tasks.sources import read_rows, shown

PROBLEM_COLUMNS = ("problem",)
ANSWER_COLUMNS = ("answer",)
_ID_COLUMNS = ("id", "unique_id")


@dataclass(frozen=True)
class ProblemRow:
    """A problem as read from a data set, and where it was."""

    id: str
    problem: str
    answer: str | None
    origin: str  # "problems.jsonl, line 3"

    def as_dict(self) -> dict[str, str | None]:
        return {"id": self.id, "problem": self.problem, "answer": self.answer}


def read_problems(
    source: str | os.PathLike[str],
    limit: int | None = None,
    *,
    split: str | None = None,
    problem_columns: Sequence[str] = PROBLEM_COLUMNS,
    answer_columns: Sequence[str] = ANSWER_COLUMNS,
    needs_answer: bool = False,
) -> list[ProblemRow]:
    """The first `limit` problems of a source (see `sources.read_rows`); all rows are checked.

    Of `problem_columns` and `answer_columns` the first that a row has is used. A row needs a problem (a text that
    is not blank) and, with `needs_answer`, an answer (a text, a number or null). `id` or `unique_id` (a text or an
    integer) is optional, by default the row's index; other fields are ignored. Raises UserError that names the row
    and what is wrong with it.
    """
    rows: list[ProblemRow] = []
    origins: dict[str, str] = {}  # of each id
    for origin, value in read_rows(source, split):
        try:
            row = _row(value, len(rows), origin, problem_columns, answer_columns, needs_answer)
        except ValueError as error:
            raise UserError(f"{origin}: {error}") from None
        if row.id in origins:
            raise UserError(f"{origin}: the id {row.id!r} is taken by {origins[row.id]}")
        origins[row.id] = origin
        rows.append(row)
    if not rows:
        raise UserError(f"{os.fspath(source)} holds no problem")
    return rows[:limit]


def gold_answer(row: dict, columns: Sequence[str], *, is_needed: bool = False) -> str | None:
    """A row's gold answer as text. Raises UserError if it is missing though needed, or of another type."""
    name = next((name for name in columns if name in row), None)
    answer = None if name is None else row[name]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise UserError(f"{name!r} must be a text, a number or null, got {shown(answer)}")
    if isinstance(answer, float):
        answer = plain_float(answer)
    if is_needed and (answer is None or not str(answer).strip()):
        raise UserError(f"no gold answer under {_either(columns)}, got {shown(row)}")
    return None if answer is None else check_encodable(str(answer))


def plain_float(value: float) -> str | None:
    """A float as people write it: pandas makes 29.0 of 29 and NaN of a missing cell, which is None here.

    Raises UserError for an infinity.
    """
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise UserError(f"an answer must be a finite number, got {value}")
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _row(
    value: object,
    index: int,
    origin: str,
    problem_columns: Sequence[str],
    answer_columns: Sequence[str],
    needs_answer: bool,
) -> ProblemRow:
    if not isinstance(value, dict):
        raise UserError(f"not a JSON object: {shown(value)}")
    column = next((name for name in problem_columns if name in value), None)
    if column is None:
        raise UserError(f"no field {_either(problem_columns)}, got {shown(value)}")
    text = value[column]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{column!r} must be a text that is not blank, got {shown(text)}")
    answer = gold_answer(value, answer_columns, is_needed=needs_answer)
    id_column = next((name for name in _ID_COLUMNS if name in value), None)
    name = index if id_column is None else value[id_column]
    if isinstance(name, float):
        name = plain_float(name)
    name = index if name is None else name
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise UserError(f"{id_column!r} must be a text or an integer, got {shown(name)}")
    return ProblemRow(check_encodable(str(name)), check_encodable(text), answer, origin)


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))
