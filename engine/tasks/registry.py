"""All tasks by name."""

from __future__ import annotations

from engine.errors import UserError
from engine.tasks.chain_task import chain_task
from engine.tasks.grading import Grader
from engine.tasks.math_tasks import math_tasks
from engine.tasks.task import Task

# One grader for all; it starts no process before the first answer that needs one.
TASKS: dict[str, Task] = {"chain": chain_task(), **math_tasks(Grader())}


def get_task(name: str) -> Task:
    """The task called `name`. Raises UserError for an unknown name."""
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]
