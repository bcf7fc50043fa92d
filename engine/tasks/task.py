"""What a search needs to know of a kind of problem."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.tasks import chain
from engine.types import Problem


@dataclass(frozen=True)
class Task:
    """How prompts are written, answers found and steps judged."""

    name: str
    delimiter: str  # ends a step
    max_tokens: int  # of a completion, by default
    prompt: Callable[[str], str]  # from a row's `problem` to what the policy is given
    extract: Callable[[str], str | None]  # the answer that a finished completion states
    first_wrong_step: Callable[[Problem, list[str]], int]  # exact; -1 where all are right
    problems: Callable[[str, int], Iterator[Problem]]  # (split, seed), endless


def _chain_prompt(text: str) -> str:
    return text.rstrip("\n") + "\n"


def _chain_problems(split: str, seed: int) -> Iterator[Problem]:
    for index, problem in enumerate(chain.problems(split, seed)):
        yield Problem(f"chain/{split}/{seed}/{index}", problem.text, problem.answer, {"depth": problem.depth})


def _chain_first_wrong_step(problem: Problem, steps: list[str]) -> int:
    """As `chain.first_wrong_step`; an answer that ends early has a wrong last step."""
    stated = chain.parse(problem.prompt)
    wrong = chain.first_wrong_step(stated, steps)
    is_ended = bool(steps) and not steps[-1].endswith("\n")
    if wrong < 0 and is_ended and chain.extract_answer(steps[-1]) != stated.answer:
        return len(steps) - 1
    return wrong


TASKS = {
    "chain": Task(
        name="chain",
        delimiter="\n",
        max_tokens=256,
        prompt=_chain_prompt,
        extract=chain.extract_answer,
        first_wrong_step=_chain_first_wrong_step,
        problems=_chain_problems,
    )
}


def get_task(name: str) -> Task:
    """The task of a name. Raises ValueError for an unknown one."""
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def take_problems(task: Task, split: str, limit: int, seed: int = 0) -> list[Problem]:
    """The first `limit` problems of a split; they do not depend on `limit`."""
    if split not in chain.SPLITS:
        raise ValueError(f"split must be one of {', '.join(chain.SPLITS)}, got {split!r}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return list(itertools.islice(task.problems(split, seed), limit))
