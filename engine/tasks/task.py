"""The interface of a task: what searches and trainings need to know about a kind of problem."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.counts import check_count
from engine.errors import UserError
from engine.prompts.text import check_encodable
from engine.tasks.data import ANSWER_COLUMNS, PROBLEM_COLUMNS, ProblemRow, gold_answer, read_problems
from engine.types import Problem


@dataclass(frozen=True)
class Task:
    """How prompts are written, answers extracted and graded, and steps judged."""

    name: str
    delimiter: str  # ends a step
    max_tokens: int  # of a completion, by default
    prompt: Callable[[str], str]  # a row's `problem` -> the policy's prompt
    extract: Callable[[str], str | None]  # a finished completion -> the answer that it states
    first_wrong_step: Callable[[Problem, list[str]], int]  # the exact index, -1 if all steps are right; see is_exact
    problems: Callable[[str, int], Iterator[Problem]]  # (split, seed) -> the task's own problems
    splits: tuple[str, ...]
    is_endless: bool = False  # its problems are generated, not read
    is_exact: bool = False  # it can judge steps; else first_wrong_step raises UserError
    gold: Callable[[str], str] = str  # a row's `answer` -> the gold answer
    # (gold, answer) pairs, the problem of each (None: one per gold answer) -> whether each is right, None if the grader
    # cannot tell; by default string equality.
    compare: Callable[[Sequence[tuple[str, str]], Sequence[Hashable] | None], list[bool | None]] | None = None
    # Answers -> their classes, the same number for equal answers; by default string equality.
    classify: Callable[[Sequence[str]], Sequence[int]] | None = None
    problem_columns: tuple[str, ...] = PROBLEM_COLUMNS  # the first that a row has is used
    answer_columns: tuple[str, ...] = ANSWER_COLUMNS

    def as_problem(self, asked: str | Mapping[str, object] | Problem, index: int) -> Problem:
        """A Problem from a text, or from a row with `problem` and perhaps `answer` and `id` (by default its index)."""
        if isinstance(asked, Problem):
            if not isinstance(asked.prompt, str):
                raise UserError(f"the prompt of problem {asked.id!r} must be a text, got {asked.prompt!r}")
            check_encodable(asked.prompt)
            return asked
        row = {"problem": asked} if isinstance(asked, str) else asked
        text = row.get("problem") if isinstance(row, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"problem {index} needs a text under 'problem', got {str(row)[:100]}")
        answer = gold_answer(row, ("answer",))
        answer = None if answer is None else self.gold(answer)
        name = row.get("id")
        return Problem(str(index if name is None else name), self.prompt(check_encodable(text)), answer)

    @property
    def grade(self) -> Callable[[str, str], bool | None] | None:
        """`compare` for one (answer, gold); None if answers are compared as strings."""
        compare = self.compare
        return None if compare is None else lambda answer, gold: compare([(gold, answer)], None)[0]

    def are_right(
        self, pairs: Sequence[tuple[str | None, str]], problems: Sequence[Hashable] | None = None
    ) -> list[bool | None]:
        """Whether each (extracted answer, gold answer) is right; None if the grader cannot tell.

        `problems` names the problem of each pair, whose answers share a time; without it those with one gold answer do.
        """
        if self.compare is None:
            return [answer == gold for answer, gold in pairs]
        stated = [index for index, (answer, _) in enumerate(pairs) if answer is not None]
        own = None if problems is None else [problems[index] for index in stated]
        verdicts = iter(self.compare([pairs[index][::-1] for index in stated], own))
        return [answer is not None and next(verdicts) for answer, _ in pairs]


def unjudged(name: str) -> Callable[[Problem, list[str]], int]:
    """`first_wrong_step` of a task that cannot judge steps, which raises UserError."""

    def first_wrong_step(problem: Problem, steps: list[str]) -> int:
        raise UserError(f"verifier 'oracle' cannot judge the steps of task {name}: only its final answers are known")

    return first_wrong_step


def take_problems(task: Task, split: str, limit: int | None, seed: int = 0) -> list[Problem]:
    """The first `limit` problems of a split, or all of a data set if it is None.

    Raises UserError for a split that the task lacks, or a limit below 1.
    """
    if split not in task.splits:
        if not task.splits:
            raise UserError(f"task {task.name} has no problems of its own: name a file or a data set")
        raise UserError(f"split must be one of {', '.join(task.splits)} for task {task.name}, got {split!r}")
    if limit is not None:
        check_count("limit", limit)
    assert limit is not None or not task.is_endless, "an endless task needs a limit"
    return list(itertools.islice(task.problems(split, seed), limit))


def read_task_problems(
    task: Task,
    source: str | os.PathLike[str],
    limit: int | None = None,
    *,
    split: str | None = None,
    problem_column: str | None = None,
    answer_column: str | None = None,
) -> list[ProblemRow]:
    """The problems of a file or data set, from the task's columns unless others are named.

    A named answer column must exist in every row. Raises UserError as `read_problems` does.
    """
    return read_problems(
        source,
        limit,
        split=split,
        problem_columns=(problem_column,) if problem_column else task.problem_columns,
        answer_columns=(answer_column,) if answer_column else task.answer_columns,
        needs_answer=answer_column is not None,
    )
