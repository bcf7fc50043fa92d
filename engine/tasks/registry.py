"""All tasks by name."""

from __future__ import annotations

from engine.errors import UserError
from engine.tasks.grading import Grader
from engine.tasks.gym import gym_task
from engine.tasks.math_tasks import math_tasks
from engine.tasks.task import Task
from engine.tasks.walks_task import walks_task

# One grader for all; it starts no process before the first answer that needs one.
TASKS: dict[str, Task] = {"walks": walks_task(), **math_tasks(Grader())}


def get_task(name: str) -> Task:
    """The task called `name`; `walks` takes options of its generator after colons, as in "walks:max_told=0".

    A data set of reasoning-gym is "gym:NAME", with options likewise, as in "gym:chain_sum:max_terms=3". Raises
    UserError for an unknown name or option, and for one of reasoning-gym if that is not installed.
    """
    base, _, options = name.partition(":")
    if base == "walks" and options:
        return walks_task(options)
    if base == "gym":
        return gym_task(options)
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, gym:NAME, got {name!r}")
    return TASKS[name]
