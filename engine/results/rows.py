"""Result rows: the result of a search as one line of JSON."""

from __future__ import annotations

import json
import math
import os

from engine.accounting import PURPOSES
from engine.errors import UserError, sentence
from engine.types import Problem, SearchResult, SearchTree

FIELDS = (
    "id",
    "problem",
    "answer",
    "pred",
    "correct",
    "completions",
    "scores",
    "agg_scores",
    "completion_tokens",
    "strategy",
    "budget",
    "seed",
    "ledger",
)
_PER_COMPLETION = ("completions", "scores", "agg_scores", "completion_tokens", "answers", "finishes")
_STATUSES = ("root", "kept", "pruned", "final")

Row = dict[str, object]


def result_row(result: SearchResult, *, with_tree: bool = False) -> Row:
    """A result as a row: FIELDS, then `answers`, `finishes`, `num_errors` and `num_generations` (and `plan`).

    Where an endpoint has not counted all, `estimated` names the entries of the ledger that this is true of.

    With a tree there are `tree` (see `tree_nodes`) and `tree_token_ids`, the token ids of each node's step.

    `scores` has a list per completion with a score per step; `agg_scores`, `completion_tokens`, `answers`
    (extracted, null for none) and `finishes` ("eos", "boxed", "stop", "length" or "error") have a value per completion.
    A score that is not finite becomes null.
    """
    candidates = result.candidates
    row: Row = {
        "id": result.problem.id,
        "problem": result.problem.prompt,
        "answer": result.problem.answer,
        "pred": result.answer,
        "correct": result.correct,
        "completions": [candidate.text for candidate in candidates],
        "scores": [[_finite(score) for score in candidate.scores] for candidate in candidates],
        "agg_scores": [_finite(candidate.agg_score) for candidate in candidates],
        "completion_tokens": [candidate.num_tokens for candidate in candidates],
        "strategy": result.strategy,
        "budget": result.budget,
        "seed": result.seed,
        "ledger": result.ledger.as_dict(),
        "answers": [candidate.answer for candidate in candidates],
        "finishes": [candidate.finish for candidate in candidates],
        "num_errors": result.num_errors,
        "num_generations": result.num_generations,
    }
    if result.plan is not None:
        row["plan"] = result.plan
    if result.ledger.estimated:
        row["estimated"] = sorted(result.ledger.estimated)
    if with_tree:
        answers = {candidate.address: candidate.answer for candidate in candidates}
        row["tree"] = tree_nodes(result.tree, answers)
        row["tree_token_ids"] = [list(node.token_ids) for node in result.tree.nodes]
    return row


def error_row(problem: Problem, error: Exception, *, strategy: str, budget: int, seed: int) -> Row:
    """What stands in the place of a result that there is none of: `error` says why."""
    asked = {"id": problem.id, "problem": problem.prompt, "answer": problem.answer}
    return {**asked, "strategy": strategy, "budget": budget, "seed": seed, "error": sentence(error)}


def is_error_row(row: Row) -> bool:
    """Whether a row says why there is no result."""
    return row.get("error") is not None


def tree_nodes(tree: SearchTree, answers: dict[tuple[int, ...], str | None]) -> list[Row]:
    """A search tree as a list of dictionaries, parents before children, the root first.

    Each has `parent` (index, null for the root), `status`, `score`, `text`, `tokens` and `finish`;
    where they apply also `agg_score`, `answer` (of a candidate) and `best` (true at the last node of
    the chosen path). `answers` gives each candidate's answer by the address of its last node.
    """
    nodes: list[Row] = []
    for index, node in enumerate(tree.nodes):
        entry: Row = {
            "parent": node.parent,
            "status": node.status,
            "score": _finite(node.score),
            "text": node.step_text,
            "tokens": node.num_tokens,
            "finish": node.finish,
        }
        if node.agg_score is not None:
            entry["agg_score"] = _finite(node.agg_score)
        if node.status == "final":
            entry["answer"] = answers.get(node.address)
        if index == tree.best:
            entry["best"] = True
        nodes.append(entry)
    return nodes


def row_line(row: Row) -> bytes:
    """A row as a line of JSON in UTF-8, newline included. Raises ValueError for NaN and infinities."""
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot encode
        return (json.dumps(row, allow_nan=False) + "\n").encode()


def stored_lines(row: Row) -> bytes:
    """What a finished row is in its run's file: itself, or the labelled answers that it holds (`ttc rollouts`)."""
    return b"".join(map(row_line, row["rows"])) if "rows" in row else row_line(row)


def read_rows(*paths: str | os.PathLike[str]) -> list[Row]:
    """The results of one or more files, in order; rows with an error in the place of a result are left out.

    Raises UserError as `read_results` does.
    """
    return read_results(*paths)[0]


def read_results(*paths: str | os.PathLike[str]) -> tuple[list[Row], list[Row]]:
    """The rows of one or more files, in order: those with a result, and those with an error in its place.

    Blank lines are skipped. Raises UserError that names the file, the line and what is wrong with it.
    """
    rows: tuple[list[Row], list[Row]] = ([], [])
    for path in paths:
        try:
            with open(path, "rb") as file:
                lines = file.read().split(b"\n")
        except OSError as error:
            raise UserError(f"cannot read results from {os.fspath(path)}: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = parse_row(line)
                    rows[is_error_row(row)].append(row)
                except ValueError as error:
                    raise UserError(f"{os.fspath(path)}, line {number}: {error}") from None
    return rows


def parse_row(line: bytes | str) -> Row:
    """Parses and checks the line of a row. Raises UserError that says what is wrong."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
        row = json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at column {error.colno}): {_shown(line)}") from None
    except RecursionError:
        raise UserError(f"not a result row (nested too deep): {_shown(line)}") from None
    check_row(row)
    return row


def check_row(row: object) -> None:
    """Raises UserError that names the first field that is missing or wrong."""
    if not isinstance(row, dict):
        raise UserError(f"not a result row (a JSON object): {_shown(row)}")
    fields = ("id", "problem", "strategy", "seed") if is_error_row(row) else FIELDS
    if missing := [name for name in fields if name not in row]:
        raise UserError(f"not a result row: no field {', '.join(map(repr, missing))}")
    for name in ("id", "problem", "strategy"):
        _require(isinstance(row[name], str), row, name, "text")
    if is_error_row(row):
        _require(isinstance(row["error"], str), row, "error", "text")
        return
    for name in ("answer", "pred"):
        _require(row[name] is None or isinstance(row[name], str), row, name, "text or null")
    is_verdict = row["correct"] is None or isinstance(row["correct"], bool)
    _require(is_verdict, row, "correct", "true, false or null")
    is_budget = _is_count(row["budget"]) and row["budget"] > 0
    _require(is_budget, row, "budget", "a number of generations from 1 up")
    _require(type(row["seed"]) is int, row, "seed", "an integer")
    _check_completions(row)
    _check_ledger(row["ledger"])
    for name in ("accuracy", "seconds"):
        if row.get(name) is not None:
            _require(_is_number(row[name]) and row[name] >= 0, row, name, "a number from 0 up")
    _require((row.get("accuracy") or 0) <= 1, row, "accuracy", "a number within 0..1")
    _require(_is_count(row.get("num_errors", 0)), row, "num_errors", "a count")
    if row.get("tree") is not None:
        _check_tree(row["tree"])


def _check_completions(row: Row) -> None:
    for name in _PER_COMPLETION:
        if name in row:
            _require(isinstance(row[name], list), row, name, "a list")
            _require(
                len(row[name]) == len(row["completions"]),
                row,
                name,
                f"one entry for each of the {len(row['completions'])} completions",
            )
    _require(all(isinstance(text, str) for text in row["completions"]), row, "completions", "a list of texts")
    _require(all(map(_is_count, row["completion_tokens"])), row, "completion_tokens", "a list of counts")
    _require(all(map(_is_score, row["agg_scores"])), row, "agg_scores", "a list of numbers or nulls")
    is_scores = all(isinstance(steps, list) and all(map(_is_score, steps)) for steps in row["scores"])
    _require(is_scores, row, "scores", "lists of numbers or nulls")
    is_answers = all(answer is None or isinstance(answer, str) for answer in row.get("answers", ()))
    _require(is_answers, row, "answers", "a list of texts or nulls")
    is_finishes = all(isinstance(finish, str) for finish in row.get("finishes", ()))
    _require(is_finishes, row, "finishes", "a list of texts")


def _check_ledger(ledger: object) -> None:
    for part in ("tokens", "flops"):
        entries = ledger.get(part) if isinstance(ledger, dict) else None
        if not isinstance(entries, dict):
            raise UserError(f"'ledger' needs the object {part!r}, got {_shown(ledger)}")
        for purpose, amount in entries.items():
            if purpose not in PURPOSES:
                raise UserError(f"'ledger' has no purpose {purpose!r}; it has {', '.join(PURPOSES)}")
            if not _is_number(amount) or amount < 0:
                raise UserError(f"'ledger' needs {part} from 0 up, got {_shown(amount)} {purpose}")


def _check_tree(nodes: object) -> None:
    if not isinstance(nodes, list) or not nodes:
        raise UserError(f"'tree' must be a list of nodes, got {_shown(nodes)}")
    for index, node in enumerate(nodes):
        if not isinstance(node, dict) or node.get("status") not in _STATUSES:
            expected = ", ".join(_STATUSES)
            raise UserError(f"'tree' node {index} needs a status of {expected}, got {_shown(node)}")
        parent = node.get("parent")
        is_parent = parent is None if index == 0 else _is_count(parent) and parent < index
        if not is_parent:
            raise UserError(f"'tree' node {index} needs a parent that comes before it, got {_shown(parent)}")
        if not _is_score(node.get("score")) or not _is_score(node.get("agg_score")):
            raise UserError(f"'tree' node {index} needs a number or null as its score, got {_shown(node)}")
        if not isinstance(node.get("text", ""), str) or not _is_count(node.get("tokens", 0)):
            raise UserError(f"'tree' node {index} needs a text and a count of tokens, got {_shown(node)}")


def _require(is_right: bool, row: Row, name: str, expected: str) -> None:
    if not is_right:
        raise UserError(f"{name!r} must be {expected}, got {_shown(row[name])}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_score(value: object) -> bool:
    return value is None or _is_number(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _refuse_constant(name: str) -> None:
    raise UserError(f"{name} is not JSON; a missing number is null")


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return repr(value)[:60]
