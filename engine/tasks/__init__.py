"""Kinds of problems: how prompts are written, and how answers are extracted and graded."""

from engine.tasks.data import ProblemRow, read_problems
from engine.tasks.grading import Grader, Verdict
from engine.tasks.registry import TASKS, get_task
from engine.tasks.task import Task, read_task_problems, take_problems

__all__ = [
    "TASKS",
    "Grader",
    "ProblemRow",
    "Task",
    "Verdict",
    "get_task",
    "read_problems",
    "read_task_problems",
    "take_problems",
]
