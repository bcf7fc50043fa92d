"""Step labels without human annotation, from Monte-Carlo rollouts (`ttc rollouts`).

Snell et al. 2024, appendix D (after Wang et al. 2023): sample answers, roll out each of their
steps with the same policy, and label the step with the share of rollouts that end in the right
answer. Only the question's gold answer is used, never a judgement of a step. An answer that the
task's grader cannot judge counts as wrong.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from engine.errors import UserError
from engine.runtime import LLM, Batcher, ModelPolicy
from engine.runtime.requests import Request
from engine.tasks import get_task, read_task_problems, take_problems
from engine.tasks.sources import has_splits
from engine.training.chains import sample_chains
from engine.training.labellers import (
    LABELLERS,
    answers_by_every_step,
    answers_by_first_error,
    answers_by_own_end,
)
from engine.training.sampler import Sampler
from engine.types import Problem, Sampling


@dataclass(frozen=True)
class RolloutRecipe:
    """Options of `ttc rollouts`; the defaults gave the shipped PRM's data."""

    num_questions: int = 3000  # of the training split, at most
    num_samples: int = 4  # answers per question
    num_rollouts: int = 8  # per step; 0 labels all steps by whether the answer itself is right
    labeller: str = "every-step"  # or "first-error", which finds the first wrong step with fewer rollouts
    num_attempts: int = 1  # over 1: num_samples chains of revisions per question, each of this many attempts
    context: int = 4  # attempts of a chain that the next one is given, at most
    temperature: float = 1.0
    seed: int = 0
    task: str = "chain"
    problems: str | None = None  # file or data set of questions; by default the task's own
    split: str | None = None  # of the task or data set; by default the training split
    problem_column: str | None = None  # of `problems`; by default the task's
    answer_column: str | None = None
    max_tokens: int | None = None  # of an answer; by default the task's

    def __post_init__(self) -> None:
        for name in ("problem_column", "answer_column"):
            if self.problems is None and getattr(self, name) is not None:
                raise UserError(f"{name} has no effect without problems to read, got {getattr(self, name)!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")
        leasts = {"num_questions": 1, "num_samples": 1, "num_rollouts": 0, "num_attempts": 1, "context": 1}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.labeller not in LABELLERS:
            raise UserError(f"labeller must be one of {', '.join(LABELLERS)}, got {self.labeller!r}")
        if self.labeller != "every-step" and not self.num_rollouts:
            raise UserError(f"labeller {self.labeller!r} needs rollouts, got num_rollouts 0")
        if self.num_attempts > 1 and self.num_rollouts:
            raise UserError(
                f"attempts of a chain are labelled by their own ends: num_attempts {self.num_attempts} "
                f"needs num_rollouts 0, got {self.num_rollouts}"
            )
        Sampling(self.temperature)  # raises for a bad one

    @property
    def settings(self) -> dict[str, object]:
        """The fields that rows depend on, without those that have no effect."""
        unused = {"labeller"} if self.labeller == "every-step" else set()
        if self.num_attempts == 1:
            unused |= {"num_attempts", "context"}
        return {name: value for name, value in asdict(self).items() if value is not None and name not in unused}


def questions(recipe: RolloutRecipe) -> list[Problem]:
    """The questions of a recipe. Raises UserError for one without a gold answer, which labels need."""
    task = get_task(recipe.task)
    if recipe.problems is None:
        problems = take_problems(task, recipe.split or "train", recipe.num_questions, recipe.seed)
        origins = [f"problem {problem.id}" for problem in problems]
    else:
        is_split = has_splits(recipe.problems)
        if recipe.split is not None and not is_split:
            raise UserError(f"split has no effect with a problem file, got {recipe.split!r}")
        rows = read_task_problems(
            task,
            recipe.problems,
            recipe.num_questions,
            split=(recipe.split or "train") if is_split else None,
            problem_column=recipe.problem_column,
            answer_column=recipe.answer_column,
        )
        golds = [None if row.answer is None else task.gold(row.answer) for row in rows]
        problems = [Problem(row.id, task.prompt(row.problem), gold) for row, gold in zip(rows, golds, strict=True)]
        origins = [row.origin for row in rows]
    for problem, origin in zip(problems, origins, strict=True):
        if not problem.answer:
            raise UserError(f"{origin}: rollouts are labelled by the gold answer, and there is none")
    return problems


@dataclass(frozen=True)
class LabelledAnswers:
    """The labelled answers to one question."""

    rows: list[dict]  # see `generate`
    num_rollouts: int  # spent on the labels


def generate(
    llm: LLM,
    recipe: RolloutRecipe,
    todo: Iterable[int] | None = None,  # indices of questions, read when there is room for more; None: all
    problems: Sequence[Problem] | None = None,  # the recipe's questions, if they have been read already
) -> Iterator[tuple[int, LabelledAnswers]]:
    """Yields (question index, labelled answers) as questions are finished.

    A labelled answer is a row in TRL's stepwise format: `prompt`, `completions` (a text per step) and `labels` (a
    float per step), and also `token_ids` (a list per step), so that no text is tokenized again. In a chain of
    revisions it has `history` too: the token ids of the attempts that it was given, oldest first. Answers that are cut
    off are dropped. Rows depend on the recipe alone, not on `todo`.
    """
    task = get_task(recipe.task)
    if recipe.max_tokens is not None:
        task = replace(task, max_tokens=recipe.max_tokens)
    problems = questions(recipe) if problems is None else problems
    policy = ModelPolicy(llm, task.delimiter)
    sampling = Sampling(recipe.temperature)
    taken: list[int] = []

    def labellers() -> Iterator[Coroutine[Request, None, LabelledAnswers]]:
        for index in range(len(problems)) if todo is None else todo:
            taken.append(index)
            yield _label(Sampler(policy, task, problems[index], sampling, recipe.seed), recipe)

    rows_each = recipe.num_samples * (recipe.num_rollouts + 1)
    for position, labelled in Batcher([llm]).run(labellers(), rows_each):
        if isinstance(labelled, Exception):
            raise labelled
        yield taken[position], labelled


async def _label(sampler: Sampler, recipe: RolloutRecipe) -> LabelledAnswers:
    if recipe.num_attempts > 1:
        attempts = await sample_chains(sampler, recipe.num_samples, recipe.num_attempts, recipe.context)
    elif recipe.num_rollouts == 0:
        attempts = await answers_by_own_end(sampler, recipe.num_samples)
    elif recipe.labeller == "first-error":
        attempts = await answers_by_first_error(sampler, recipe.num_samples, recipe.num_rollouts)
    else:
        attempts = await answers_by_every_step(sampler, recipe.num_samples, recipe.num_rollouts)
    rows = [sampler.row(attempt) for attempt in attempts if attempt.is_ended]
    return LabelledAnswers(rows, sum(attempt.num_rollouts for attempt in attempts))
