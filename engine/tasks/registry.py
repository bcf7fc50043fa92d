"""All tasks by name."""

from __future__ import annotations

from engine.errors import UserError
from engine.tasks.grading import Grader
from engine.tasks.math_tasks import math_tasks
from engine.tasks.task import Task
from engine.tasks.walks_task import walks_task

# One grader for all; it starts no process before the first answer that needs one.
TASKS: dict[str, Task] = {"walks": walks_task(), **math_tasks(Grader())}


def get_task(name: str) -> Task:
    """The task called `name`; `walks` takes options of its generator after colons, as in "walks:max_told=0".

    Raises UserError for an unknown name or option.
    """
    base, _, options = name.partition(":")
    if base == "walks" and options:
        return walks_task(options)
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]
