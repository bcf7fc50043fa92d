"""Kinds of problems: how they are written, and how answers are found and graded."""

from engine.tasks.task import TASKS, Task, get_task, take_problems

__all__ = ["TASKS", "Task", "get_task", "take_problems"]
