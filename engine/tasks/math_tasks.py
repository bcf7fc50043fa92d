"""Tasks whose answers are numbers or formulas: GSM8K, MATH-500, AIME, and any data set like them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.tasks.answers import extract_expression, extract_number, strip_wrappers
from engine.tasks.data import PROBLEM_COLUMNS, read_problems
from engine.tasks.grading import Grader
from engine.tasks.task import Task, unjudged
from engine.types import Problem


@dataclass(frozen=True)
class DataSet:
    """Where a task's own problems are: at a local path, else in a data set on the Hub."""

    source: str
    splits: dict[str, str]  # the task's split -> the data set's
    problem_columns: tuple[str, ...] = PROBLEM_COLUMNS


_GSM8K = DataSet("openai/gsm8k:main", {"train": "train", "test": "test"}, ("question", *PROBLEM_COLUMNS))
_MATH500 = DataSet("HuggingFaceH4/MATH-500", {"test": "test"})
_AIME24 = DataSet("HuggingFaceH4/aime_2024", {"test": "train"})


def math_tasks(grader: Grader) -> dict[str, Task]:
    """The tasks `math` (any data set), `gsm8k`, `math500` and `aime24`, which share one grader."""
    return {
        "math": _task("math", grader, None, extract_expression),
        "gsm8k": _task("gsm8k", grader, _GSM8K, extract_number, delimiter="\n", max_tokens=512, gold=gsm8k_gold),
        "math500": _task("math500", grader, _MATH500, extract_expression),
        "aime24": _task("aime24", grader, _AIME24, extract_expression),
    }


def gsm8k_gold(answer: str) -> str:
    """The number after the last `####` of a solution, without commas; any other answer without wrappers."""
    return answer.rpartition("####")[2].strip().replace(",", "") if "####" in answer else strip_wrappers(answer)


def _task(
    name: str,
    grader: Grader,
    data: DataSet | None,
    extract: Callable[[str], str | None],
    *,
    delimiter: str = "\n\n",
    max_tokens: int = 2048,
    gold: Callable[[str], str] = strip_wrappers,
) -> Task:
    def problems(split: str, seed: int) -> Iterator[Problem]:
        """Yields problems in the data set's order; the seed has no effect."""
        assert data is not None, "a task without splits has no problems"
        rows = read_problems(data.source, split=data.splits[split], problem_columns=data.problem_columns)
        for row in rows:
            answer = None if row.answer is None else gold(row.answer)
            yield Problem(f"{name}/{split}/{row.id}", row.problem, answer)

    return Task(
        name=name,
        delimiter=delimiter,
        max_tokens=max_tokens,
        prompt=str.strip,
        extract=extract,
        first_wrong_step=unjudged(name),
        problems=problems,
        splits=tuple(data.splits) if data else (),
        gold=gold,
        compare=lambda pairs, problems: [verdict.is_correct for verdict in grader.grade_all(pairs, problems)],
        classify=grader.classify,
        problem_columns=data.problem_columns if data else PROBLEM_COLUMNS,
    )
