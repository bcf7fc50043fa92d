"""Step labels without a human: Monte-Carlo rollouts from the end of every step.

Snell et al. 2024, appendix D (after Wang et al. 2023): sample answers, roll out each of their
steps with the same policy, and label the step with the share of rollouts that end in the right
answer. Only the gold answer of the question is used, never a judgement of a step. An answer that the
task's grader cannot judge counts as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engine.accounting import Ledger
from engine.keys import branch_key
from engine.runtime import LLM, Batcher, Branch, ModelPolicy
from engine.tasks import Task, get_task, read_task_problems, take_problems
from engine.tasks.sources import has_splits
from engine.types import Problem, Sampling, Step


@dataclass(frozen=True)
class RolloutRecipe:
    """How many questions, answers and rollouts; the default made the shipped PRM's data."""

    num_questions: int = 3000  # of the training split, at most
    num_samples: int = 4  # answers per question
    num_rollouts: int = 8  # per step; 0 takes the answer's own end for the one rollout of all its steps
    temperature: float = 1.0
    seed: int = 0
    task: str = "chain"
    problems: str | None = None  # file or data set to take the questions from; by default the task's own
    split: str | None = None  # of the task or data set; by default the training split
    problem_column: str | None = None  # of `problems`; by default the task's
    answer_column: str | None = None
    max_tokens: int | None = None  # of an answer; by default the task's

    def __post_init__(self) -> None:
        for name in ("problem_column", "answer_column"):
            if self.problems is None and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect without problems to read, got {getattr(self, name)!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        for name, least in (("num_questions", 1), ("num_samples", 1), ("num_rollouts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        Sampling(self.temperature)  # raises for a bad one


@dataclass
class _Attempt:
    """One sampled answer, its steps so far and their labels."""

    address: tuple[int, ...]
    branch: Branch | None
    steps: list[Step]
    labels: list[float]

    @property
    def is_live(self) -> bool:
        return not self.steps or self.steps[-1].finish == "step"


def questions(recipe: RolloutRecipe) -> list[Problem]:
    """The questions of a recipe. Raises ValueError for one without a gold answer: nothing could be labelled."""
    task = get_task(recipe.task)
    if recipe.problems is None:
        problems = take_problems(task, recipe.split or "train", recipe.num_questions, recipe.seed)
        origins = [f"problem {problem.id}" for problem in problems]
    else:
        is_split = has_splits(recipe.problems)
        if recipe.split is not None and not is_split:
            raise ValueError(f"split has no effect with a problem file, got {recipe.split!r}")
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
            raise ValueError(f"{origin}: rollouts are labelled by the gold answer, and there is none")
    return problems


def generate(
    llm: LLM, recipe: RolloutRecipe, done: Sequence[int] = (), problems: Sequence[Problem] | None = None
) -> Iterator[tuple[int, list[dict]]]:
    """Yields (question index, labelled answers) as questions are finished, those in `done` left out.

    A labelled answer has TRL's stepwise form: `prompt`, `completions` (a text per step), `labels`
    (a float per step), and `token_ids` (per step), so that no text has to be tokenized again.
    Answers that never end are dropped: they state no answer. Rows depend on the recipe alone, not
    on which questions are left out. `problems` are those of the recipe, where they have been read already.
    """
    task = get_task(recipe.task)
    if recipe.max_tokens is not None:
        task = replace(task, max_tokens=recipe.max_tokens)
    problems = questions(recipe) if problems is None else problems
    skipped = set(done)
    todo = [index for index in range(len(problems)) if index not in skipped]
    policy = ModelPolicy(llm, task.delimiter)
    labellers = (_label(policy, task, problems[index], recipe) for index in todo)
    rows_each = recipe.num_samples * (recipe.num_rollouts + 1)
    for position, rows in Batcher([llm.runner]).run(labellers, rows_each):
        if isinstance(rows, Exception):
            raise rows
        yield todo[position], rows


async def _label(policy: ModelPolicy, task: Task, problem: Problem, recipe: RolloutRecipe) -> list[dict]:
    sampling = Sampling(recipe.temperature)
    root = await policy.open(problem.prompt, ledger=Ledger())
    branches = root.fork(recipe.num_samples)
    root.close()
    attempts = [_Attempt((index,), branch, [], []) for index, branch in enumerate(branches)]
    try:
        if recipe.num_rollouts == 0:
            await _finish(policy, task, problem, recipe, sampling, attempts)
        while live := [attempt for attempt in attempts if attempt.is_live]:
            await _advance(policy, task, problem, recipe, sampling, live)
    finally:
        for attempt in attempts:
            if attempt.branch is not None:
                attempt.branch.close()
    return [
        {
            "prompt": problem.prompt,
            "completions": [step.text for step in attempt.steps],
            "labels": attempt.labels,
            "token_ids": [list(step.token_ids) for step in attempt.steps],
        }
        for attempt in attempts
        if attempt.steps[-1].finish == "eos"
    ]


async def _finish(
    policy: ModelPolicy,
    task: Task,
    problem: Problem,
    recipe: RolloutRecipe,
    sampling: Sampling,
    attempts: Sequence[_Attempt],
) -> None:
    """Samples every attempt to its end, which labels all of its steps."""
    ends = await policy.extend(
        [attempt.branch for attempt in attempts],
        keys=[_key(recipe, problem, attempt, "answer") for attempt in attempts],
        sampling=sampling,
        stop_at_step=False,
        max_tokens=task.max_tokens,
    )
    for attempt, steps, is_right in zip(attempts, ends, _are_right(task, problem, ends), strict=True):
        attempt.steps = steps
        attempt.labels = [float(is_right)] * len(steps)


async def _advance(
    policy: ModelPolicy,
    task: Task,
    problem: Problem,
    recipe: RolloutRecipe,
    sampling: Sampling,
    live: Sequence[_Attempt],
) -> None:
    """One more step on every live attempt, and the labels of those steps."""
    steps = await policy.extend(
        [attempt.branch for attempt in live],
        keys=[_key(recipe, problem, attempt, "step") for attempt in live],
        sampling=sampling,
        stop_at_step=True,
        max_tokens=[_room(task, attempt) for attempt in live],
    )
    rolled: list[_Attempt] = []
    for attempt, (step,) in zip(live, steps, strict=True):
        attempt.steps.append(step)
        if step.finish == "step" and _room(task, attempt) < 1:
            attempt.steps[-1] = Step(step.token_ids, step.text, "length", step.logprob)
        if step.finish == "eos":
            attempt.labels.append(float(_are_right(task, problem, [attempt.steps])[0]))
        elif attempt.is_live:
            rolled.append(attempt)
    if rolled:
        await _roll_out(policy, task, problem, recipe, sampling, rolled)


async def _roll_out(
    policy: ModelPolicy,
    task: Task,
    problem: Problem,
    recipe: RolloutRecipe,
    sampling: Sampling,
    attempts: Sequence[_Attempt],
) -> None:
    """Appends to each attempt the share of rollouts from its last step that end right."""
    forks = [fork for attempt in attempts for fork in attempt.branch.fork(recipe.num_rollouts)]
    owners = [attempt for attempt in attempts for _ in range(recipe.num_rollouts)]
    try:
        ends = await policy.extend(
            forks,
            keys=[
                _key(recipe, problem, attempt, f"rollout {index % recipe.num_rollouts}")
                for index, attempt in enumerate(owners)
            ],
            sampling=sampling,
            stop_at_step=False,
            max_tokens=[_room(task, attempt) for attempt in owners],
            purpose="lookahead",
        )
    finally:
        for fork in forks:
            fork.close()
    right = _are_right(task, problem, [attempt.steps + end for attempt, end in zip(owners, ends, strict=True)])
    for index, attempt in enumerate(attempts):
        mine = right[index * recipe.num_rollouts : (index + 1) * recipe.num_rollouts]
        attempt.labels.append(sum(mine) / recipe.num_rollouts)


def _key(recipe: RolloutRecipe, problem: Problem, attempt: _Attempt, purpose: str) -> int:
    """A stream of its own for every step and every rollout."""
    return branch_key(recipe.seed, f"{purpose}/{problem.id}", (*attempt.address, len(attempt.steps)))


def _room(task: Task, attempt: _Attempt) -> int:
    return task.max_tokens - sum(len(step.token_ids) for step in attempt.steps)


def _are_right(task: Task, problem: Problem, answers: Sequence[Sequence[Step]]) -> list[bool]:
    """Whether each answer, given by its steps, has ended and states the gold answer."""
    ended = [steps[-1].finish == "eos" for steps in answers]
    texts = ["".join(step.text for step in steps) for steps in answers]
    stated = [task.extract(text) if is_end else None for text, is_end in zip(texts, ended, strict=True)]
    return [bool(verdict) for verdict in task.are_right([(answer, problem.answer) for answer in stated])]
