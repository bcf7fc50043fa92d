"""The task `walks` as a `Task`."""

from __future__ import annotations

from collections.abc import Iterator

from engine.tasks import walks
from engine.tasks.task import Task
from engine.types import Problem


def walks_task(options: str = "") -> Task:
    """The task `walks`: answers are compared as strings, and every step can be judged exactly.

    `options` change the generator, as in "max_told=0:min_walks=1". Raises UserError for those that it lacks.
    """
    config = walks.config_from_options(walks.as_pairs(options.split(":") if options else ()))

    def problems(split: str, seed: int) -> Iterator[Problem]:
        for index, problem in enumerate(walks.problems(split, seed, config)):
            metadata = {"walks": len(problem.walks), "open": sum(walk.is_open for walk in problem.walks)}
            yield Problem(f"walks/{split}/{seed}/{index}", problem.text, problem.answer(config.table), metadata)

    def first_wrong_step(problem: Problem, steps: list[str]) -> int:
        """As `walks.first_wrong_step`; an answer that ends early has a wrong last step."""
        stated = walks.parse(problem.prompt, config)
        wrong = walks.first_wrong_step(stated, steps, config)
        is_ended = bool(steps) and not steps[-1].endswith("\n")
        return len(steps) - 1 if wrong < 0 and is_ended and len(steps) < len(stated.walks) else wrong

    return Task(
        name=f"walks:{options}" if options else "walks",
        delimiter="\n",
        max_tokens=256,
        prompt=lambda text: text.rstrip("\n") + "\n",
        extract=walks.extract_answer,
        first_wrong_step=first_wrong_step,
        is_exact=True,
        problems=problems,
        splits=walks.SPLITS,
        is_endless=True,
    )
