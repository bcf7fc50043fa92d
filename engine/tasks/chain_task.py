"""The task `chain` as a `Task`."""

from __future__ import annotations

from collections.abc import Iterator

from engine.tasks import chain
from engine.tasks.task import Task
from engine.types import Problem


def chain_task() -> Task:
    """The task `chain`: answers are compared as strings, and every step can be judged exactly."""
    return Task(
        name="chain",
        delimiter="\n",
        max_tokens=256,
        prompt=_prompt,
        extract=chain.extract_answer,
        first_wrong_step=_first_wrong_step,
        is_exact=True,
        problems=_problems,
        splits=chain.SPLITS,
        is_endless=True,
    )


def _prompt(text: str) -> str:
    return text.rstrip("\n") + "\n"


def _problems(split: str, seed: int) -> Iterator[Problem]:
    for index, problem in enumerate(chain.problems(split, seed)):
        yield Problem(f"chain/{split}/{seed}/{index}", problem.text, problem.answer, {"depth": problem.depth})


def _first_wrong_step(problem: Problem, steps: list[str]) -> int:
    """As `chain.first_wrong_step`; an answer that ends early has a wrong last step."""
    stated = chain.parse(problem.prompt)
    wrong = chain.first_wrong_step(stated, steps)
    is_ended = bool(steps) and not steps[-1].endswith("\n")
    if wrong < 0 and is_ended and chain.extract_answer(steps[-1]) != stated.answer:
        return len(steps) - 1
    return wrong
