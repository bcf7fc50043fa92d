"""The problems that a command line names."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace

from engine.errors import UserError
from engine.tasks import ProblemRow, Task, read_task_problems
from engine.tasks.sources import has_splits


def read_problems(options: SimpleNamespace, task: Task, given: Collection[str]) -> list[ProblemRow]:
    """The rows of `options.problems`, a file or a data set, with the columns that are named or the task's.

    `given` are the names of the options that the user typed. Raises UserError that names what is wrong, and where.
    """
    source = options.problems
    if "split" in given and not has_splits(source):
        raise UserError(f"--split has no effect with a problem file, got {options.split!r}")
    return read_task_problems(
        task,
        source,
        options.limit,
        split=options.split if has_splits(source) else None,
        problem_column=options.problem_column,
        answer_column=options.answer_column,
    )
