"""The problems that a command line names."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.cli.options import Given
from engine.errors import UserError
from engine.tasks import ProblemRow, Task, get_task, read_task_problems, take_problems
from engine.tasks.sources import has_splits
from engine.types import Problem

DEFAULT_LIMIT = 100  # problems of a task that has no end of them


@dataclass(frozen=True)
class ProblemOptions:
    """Which problems are searched, beside their task."""

    problems: str | None = field(default=None, metadata={"argument": True})
    """JSONL or Parquet file with `problem` (and `answer`, `id`), or a data set on the Hub, as owner/name."""

    split: str = "test"
    """Of the task, or of a data set: train, validation, test."""

    problem_column: str | None = None
    """Of the rows that are read; by default the task's."""

    answer_column: str | None = None
    """Of the rows that are read; by default the task's."""

    limit: int | None = field(
        default=None, metadata={"help": f"The first so many problems; of walks and gym {DEFAULT_LIMIT}."}
    )


def find_problems(options: ProblemOptions, task_name: str, given: Given) -> tuple[list[Problem], list[str]]:
    """The problems, and where each of them is in its file. Raises UserError for an option without effect."""
    task, limit = get_task(task_name), options.limit
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    if options.problems is not None:
        rows = _read(options, task, given)
        return [task.as_problem(row.as_dict(), index) for index, row in enumerate(rows)], [row.origin for row in rows]
    for name in ("problem_column", "answer_column"):
        if name in given:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} has no effect without a problem file, got {getattr(options, name)!r}")
    problems = take_problems(task, options.split, limit or (DEFAULT_LIMIT if task.is_endless else None))
    return problems, [f"problem {problem.id}" for problem in problems]


def _read(options: ProblemOptions, task: Task, given: Given) -> list[ProblemRow]:
    """The rows of a file or a data set, with the columns that are named or the task's."""
    is_split = has_splits(options.problems)
    if "split" in given and not is_split:
        raise UserError(f"--split has no effect with a problem file, got {options.split!r}")
    return read_task_problems(
        task,
        options.problems,
        options.limit,
        split=options.split if is_split else None,
        problem_column=options.problem_column,
        answer_column=options.answer_column,
    )
