"""Reads labelled steps in the formats of TRL (stepwise), Math-Shepherd and PRM800K, and writes TRL's.

A row of any format becomes `{"prompt", "completions", "labels"}`: a text per step, each but the last with the separator
that ends it, and a label within 0..1 per step. Rows of `ttc rollouts` are TRL's with `token_ids` added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from engine.errors import UserError
from engine.files import write_atomically
from engine.prompts.text import check_encodable

FORMATS = ("stepwise", "math-shepherd", "prm800k")
NEUTRALS = ("good", "bad")
_TAG = "ки"  # ends a step of Math-Shepherd; in `label` one character takes its place
_PRM800K_END = "# Answer"  # precedes the answer in the last step of a solution
_FIRST_STEP = re.compile(r"\s*Step 1\s*:")


def read_stepwise(path: Path) -> list[dict]:
    """Rows with `prompt`, `completions` and soft `labels`. Raises UserError that names the line."""
    return list(_read(path, lambda value: [_checked(value)]))


def read_steps(
    path: Path, format: str = "stepwise", *, neutral: str | None = None, separator: str | None = None
) -> list[dict]:
    r"""Rows of a file in any of FORMATS; each answer that a PRM800K row labels becomes a row.

    `neutral`, "good" or "bad", is required for PRM800K only: the meaning of its rating 0 (good for Qwen and PURE, bad
    for TRL). `separator` is appended to steps that do not end in it (`\n` may be written as two characters); the
    default is a newline, and for stepwise rows none. Raises UserError for bad options, and for a row that is not of
    the format, with its line number.
    """
    check_format(format, neutral, separator)
    if format == "stepwise" and separator is None:
        return read_stepwise(path)
    ending = "\n" if separator is None else separator.replace("\\n", "\n")
    convert: dict[str, Callable[[dict], list[dict]]] = {
        "stepwise": lambda value: [_checked(value)],
        "math-shepherd": lambda value: [_from_math_shepherd(value)],
        "prm800k": lambda value: _from_prm800k(value, float(neutral == "good")),
    }
    rows = [_separated(row, ending) for row in _read(path, convert[format])]
    return [_with_last_separator(row, ending) for row in rows] if format == "prm800k" else rows


def check_format(format: str, neutral: str | None = None, separator: str | None = None) -> None:
    """Raises UserError for invalid options of `read_steps`."""
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "prm800k" and neutral not in NEUTRALS:
        raise UserError(f"format prm800k needs neutral, {' or '.join(NEUTRALS)}, for its rating 0, got {neutral!r}")
    if format != "prm800k" and neutral is not None:
        raise UserError(f"neutral has no effect with format {format}, only with prm800k, got {neutral!r}")
    if separator == "":
        raise UserError("separator must be a text that ends a step, got ''")


def stepwise_line(row: dict, separator: str = "\n", *, threshold: float | None = None) -> str:
    """A row as a line of TRL's format: without token ids, and without separators, which TRL adds itself.

    With a `threshold`, labels of at least this become true and others false; TRL would truncate 0.9 to 0.
    """
    labels = [label if threshold is None else label >= threshold for label in row["labels"]]
    steps = [text.removesuffix(separator) for text in row["completions"]]
    return json.dumps({"prompt": row["prompt"], "completions": steps, "labels": labels}) + "\n"


def write_stepwise(rows: Iterable[dict], path: Path, separator: str = "\n", *, threshold: float | None = None) -> None:
    """Writes rows in TRL's format (see `stepwise_line`). Raises UserError for a threshold outside 0..1."""
    check_threshold(threshold)
    write_atomically(path, "".join(stepwise_line(row, separator, threshold=threshold) for row in rows).encode())


def check_threshold(threshold: float | None) -> None:
    """Raises UserError for a threshold outside 0..1."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold must be within 0..1, got {threshold}")


def _read(path: Path, convert: Callable[[dict], list[dict]]) -> Iterator[dict]:
    if not path.is_file():
        raise UserError(f"no rollouts at {str(path)!r}")
    is_empty = True
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows = convert(json.loads(line.decode()))
                for text in (text for row in rows for text in (row["prompt"], *row["completions"])):
                    check_encodable(text)
            except (UnicodeDecodeError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                problem = f"not a row of this format ({type(error).__name__}: {error})"
            except ValueError as error:  # JSONDecodeError too
                problem = str(error)
            else:
                is_empty = is_empty and not rows
                yield from rows
                continue
            shown = line[:80].decode(errors="replace").rstrip("\n")
            raise UserError(f"{path}, line {number}: {problem}: {shown!r}") from None
    if is_empty:
        raise UserError(f"{path} holds no rows")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(token, int) and token >= 0 for token in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _checked(row: dict) -> dict:
    """A stepwise row with labels as floats. Raises UserError, KeyError or TypeError if it is not valid."""
    texts, labels = row["completions"], row["labels"]
    if not isinstance(row["prompt"], str) or not isinstance(texts, list) or not all(map(_is_text, texts)):
        raise UserError("prompt and completions must be texts")
    if len(texts) != len(labels) or not all(0 <= label <= 1 for label in labels):
        raise UserError("needs one label within 0..1 per completion")
    ids, history = row.get("token_ids"), row.get("history")
    if ids is not None and (len(ids) != len(texts) or not all(map(_is_ids, ids))):
        raise UserError("token_ids must be a list of whole numbers per completion")
    if history is not None and not all(map(_is_ids, history)):
        raise UserError("history must be lists of whole numbers")
    return {**row, "labels": [float(label) for label in labels]}


def _separated(row: dict, separator: str) -> dict:
    *steps, last = row["completions"] or [""]
    if not row["completions"] or "token_ids" in row:
        return row
    return {**row, "completions": [*(step.removesuffix(separator) + separator for step in steps), last]}


def _with_last_separator(row: dict, separator: str) -> dict:
    """Ends the last step of a PRM800K row with the separator, unless it is the end of the answer."""
    *steps, last = row["completions"]
    return row if _PRM800K_END in last else {**row, "completions": [*steps, last.removesuffix(separator) + separator]}


def _from_math_shepherd(row: dict) -> dict:
    """Converts a Math-Shepherd row: a tag ends every step in `input`; `label` has a plus or a minus in its place."""
    parts, labels, position = row["input"].split(_TAG), [], 0
    for part in parts[:-1]:
        position += len(part)
        mark = row["label"][position : position + 1]
        if mark not in ("+", "-"):
            raise UserError(f"no + or - in place of the tag of step {len(labels) + 1}, got {mark!r}")
        labels.append(float(mark == "+"))
        position += 1
    match = _FIRST_STEP.search(parts[0])
    if not labels or match is None:
        raise UserError("no labelled step, or none that begins with 'Step 1:'")
    steps = [parts[0][match.start() :], *parts[1:-1]]
    prompt = parts[0][: match.start()].strip() + "\n"
    return {"prompt": prompt, "completions": [step.strip() for step in steps], "labels": labels}


def _from_prm800k(row: dict, neutral: float) -> list[dict]:
    """Converts a PRM800K row: one row per rated alternative that was not chosen, and one for the chosen path.

    Alternatives without a rating are left out, and the path ends before a step without one. Steps written by
    humans are good.
    """
    values = {-1: 0.0, 0: neutral, 1: 1.0}
    prompt = row["question"]["problem"].strip() + "\n"
    rows: list[dict] = []
    texts: list[str] = []
    labels: list[float] = []

    def add(more: list[str], marks: list[float]) -> None:
        if texts + more:
            rows.append({"prompt": prompt, "completions": texts + more, "labels": labels + marks})

    for step in row["label"]["steps"]:
        chosen = step["chosen_completion"]
        completions = step["completions"] or []
        for index, completion in enumerate(completions):
            if index != chosen and completion["rating"] is not None:
                add([completion["text"].strip()], [_rated(values, completion["rating"])])
        if chosen is not None and completions[chosen]["rating"] is not None:
            texts.append(completions[chosen]["text"].strip())
            labels.append(_rated(values, completions[chosen]["rating"]))
        elif chosen is None and step.get("human_completion"):
            texts.append(step["human_completion"]["text"].strip())
            labels.append(1.0)
        else:
            break
    add([], [])
    return rows


def _rated(values: dict[int, float], rating: int) -> float:
    if rating not in values:
        raise UserError(f"a rating must be -1, 0 or 1, got {rating!r}")
    return values[rating]
