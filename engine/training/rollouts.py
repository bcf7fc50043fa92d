"""Step labels without human annotation, from Monte-Carlo rollouts (`ttc rollouts`).

Snell et al. 2024, appendix D (after Wang et al. 2023): sample answers, roll out each of their
steps with the same policy, and label the step with the share of rollouts that end in the right
answer. Only the question's gold answer is used, never a judgement of a step. An answer that the
task's grader cannot judge counts as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from engine.errors import UserError, sentence
from engine.runtime import LLM, Batcher, ModelPolicy
from engine.runtime.checks import raise_error
from engine.runtime.requests import Request
from engine.tasks import get_task, read_task_problems, take_problems
from engine.tasks.sources import has_splits
from engine.training.chains import sample_chains
from engine.training.labellers import (
    LABELLERS,
    close,
    label_by_first_error,
    label_by_own_end,
    label_every_step,
    sample_by_steps,
    sample_whole,
)
from engine.training.pass_rates import PassBounds
from engine.training.sampler import SampledAnswer, Sampler
from engine.training.searched import SearchedQuestion, label_paths
from engine.types import Problem, Sampling

# Fields that have no effect where the answers are those of searches.
UNSEARCHED = ("num_samples", "labeller", "pass_rate", "pass_samples", "max_tries", "num_attempts", "context")
UNSEARCHED += ("problems", "split", "problem_column", "answer_column")
TRIES_EACH = 20  # questions without an end that are tried, by default, for each that is wanted


@dataclass(frozen=True)
class RolloutRecipe:
    """Options of `ttc rollouts`; the Makefile has those of the shipped verifiers' data."""

    num_questions: int = 3000
    """Of the training split, at most."""

    num_samples: int = 4
    """Answers per question."""

    num_rollouts: int = 8
    """Per step; 0 labels all steps by whether the answer itself is right."""

    labeller: str = "every-step"
    """Or first-error, which finds the first wrong step with fewer rollouts."""

    pass_rate: str | None = None
    """LOW:HIGH, such as 0.05:0.6: keep questions of which this share of samples is right; the short ones come first."""

    pass_samples: int = 8
    """Answers per question that --pass-rate is measured on; the first of them are those that are labelled."""

    max_tries: int | None = None
    """Questions that --pass-rate may try; by default all of a source, and 20 for each wanted if that has no end."""

    results: str | None = field(default=None, metadata={"flags": "--from"})
    """Results of ttc search --with-tree: roll out from the steps that these searches kept and rejected."""

    max_paths: int = 8
    """Paths of --from per question: its best-scored answers and as many rejected steps."""

    num_attempts: int = 1
    """Over 1: --num-samples chains of revisions per question, each of this many attempts."""

    context: int = 4
    """Attempts of a chain that the next one is given, at most."""

    temperature: float = 1.0
    """Of all samples; 0 is greedy."""

    seed: int = 0
    """Of all random numbers."""

    task: str = "walks"
    """How prompts are written and answers graded."""

    problems: str | None = None
    """File or data set of questions; by default the task's own."""

    split: str | None = None
    """Of the task or data set; by default the training split."""

    problem_column: str | None = None
    """Of --problems; by default the task's."""

    answer_column: str | None = None
    """Of --problems; by default the task's."""

    max_tokens: int | None = None
    """Of an answer; by default the task's."""

    def __post_init__(self) -> None:
        for name in ("problem_column", "answer_column"):
            if self.problems is None and getattr(self, name) is not None:
                raise UserError(f"{name} has no effect without problems to read, got {getattr(self, name)!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")
        leasts = {"num_questions": 1, "num_samples": 1, "num_rollouts": 0, "num_attempts": 1, "context": 1}
        leasts |= {"pass_samples": 1, "max_paths": 1} | (
            {} if self.max_tries is None else {"max_tries": self.num_questions}
        )
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
        Sampling(self.temperature)  # these two raise for a bad one
        _ = self.pass_bounds

    @property
    def pass_bounds(self) -> PassBounds | None:
        """Which questions are kept; None for all."""
        return None if self.pass_rate is None else PassBounds.parse(self.pass_rate)

    @property
    def settings(self) -> dict[str, object]:
        """The fields that rows depend on, without those that have no effect."""
        unused = {"max_tries"} | ({"labeller"} if self.labeller == "every-step" else set())
        if self.pass_rate is None:
            unused.add("pass_samples")
        unused |= {"max_paths"} if self.results is None else {"results", *UNSEARCHED}  # what they hold counts
        if self.num_attempts == 1:
            unused |= {"num_attempts", "context"}
        return {name: value for name, value in asdict(self).items() if value is not None and name not in unused}


def questions(recipe: RolloutRecipe) -> list[Problem]:
    """The questions of a recipe; with a pass rate those that may be tried.

    Raises UserError for one without a gold answer, which labels need.
    """
    task = get_task(recipe.task)
    limit = recipe.num_questions
    if recipe.pass_rate is not None:
        is_endless = task.is_endless and recipe.problems is None
        limit = recipe.max_tries or (TRIES_EACH * limit if is_endless else None)
    if recipe.problems is None:
        problems = take_problems(task, recipe.split or "train", limit, recipe.seed)
        origins = [f"problem {problem.id}" for problem in problems]
    else:
        is_split = has_splits(recipe.problems)
        if recipe.split is not None and not is_split:
            raise UserError(f"split has no effect with a problem file, got {recipe.split!r}")
        rows = read_task_problems(
            task,
            recipe.problems,
            limit,
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
    pass_rate: float | None = None  # the share of right samples, if the recipe chooses by it; then there are no rows
    mean_tokens: float = 0.0  # ... where it is outside the bounds; and the mean length of these samples
    error: str | None = None  # why there are none


def generate(
    llm: LLM,
    recipe: RolloutRecipe,
    todo: Iterable[int] | None = None,  # indices of questions, read when there is room for more; None: all
    problems: Sequence[Problem] | None = None,  # the recipe's questions, if they have been read; those of searches
    on_error: str = "raise",  # or yield: what a question raises is yielded in the place of its answers
) -> Iterator[tuple[int, LabelledAnswers]]:
    """Yields (question index, labelled answers) as questions are finished.

    A labelled answer is a row in TRL's stepwise format: `prompt`, `completions` (a text per step) and `labels` (a
    float per step), and also `token_ids` (a list per step), so that no text is tokenized again. In a chain of
    revisions it has `history` too: the token ids of the attempts that it was given, oldest first. Answers that are cut
    off are dropped. Rows depend on the recipe alone, not on `todo`. A question has the same rows with a pass rate as
    without, if it has any.
    """
    problems = questions(recipe) if problems is None else problems
    label = labeller(llm, recipe)
    taken: list[int] = []

    def labellers() -> Iterator[Coroutine[Request, None, LabelledAnswers]]:
        for index in range(len(problems)) if todo is None else todo:
            taken.append(index)
            yield label(problems[index])

    for position, labelled in Batcher().run([llm], labellers(), rows_each(recipe)):
        yield taken[position], settled(labelled, on_error)


def labeller(llm: LLM, recipe: RolloutRecipe) -> Callable[[Problem], Coroutine[Request, None, LabelledAnswers]]:
    """What labels a question, for a batcher to run."""
    task = get_task(recipe.task)
    if recipe.max_tokens is not None:
        task = replace(task, max_tokens=recipe.max_tokens)
    policy = ModelPolicy(llm, task.delimiter)
    sampling = Sampling(recipe.temperature)
    return lambda problem: _label(Sampler(policy, task, problem, sampling, recipe.seed), recipe)


def rows_each(recipe: RolloutRecipe) -> int:
    """The branches that a question has at once."""
    if recipe.results is not None:
        return recipe.max_paths * max(1, recipe.num_rollouts)
    if recipe.pass_rate is not None:  # most questions cost no more
        return max(recipe.num_samples, recipe.pass_samples)
    return recipe.num_samples * (recipe.num_rollouts + 1)


def settled(labelled: LabelledAnswers | Exception, on_error: str) -> LabelledAnswers:
    """The answers, or none and the error's sentence; raises the error unless `on_error` is "yield"."""
    raise_error(labelled, on_error)
    return LabelledAnswers([], 0, error=sentence(labelled)) if isinstance(labelled, Exception) else labelled


async def _label(sampler: Sampler, recipe: RolloutRecipe) -> LabelledAnswers:
    if isinstance(sampler.problem, SearchedQuestion):
        paths = await label_paths(sampler, sampler.problem.paths, recipe.num_rollouts)
        return LabelledAnswers(list(map(sampler.row, paths)), sum(path.num_rollouts for path in paths))
    sample = sample_by_steps if recipe.num_rollouts else sample_whole
    bounds, pass_rate, mean_tokens = recipe.pass_bounds, None, 0.0
    num_alone = recipe.num_samples if recipe.num_attempts == 1 else 0  # chains sample their first attempts themselves
    num_first = num_alone if bounds is None else recipe.pass_samples
    answers = await sample(sampler, range(num_first))
    try:
        if bounds is not None:
            right = sampler.are_right([answer.steps for answer in answers])
            pass_rate = sum(right) / num_first
            mean_tokens = sum(len(answer.token_ids) for answer in answers) / num_first
            if pass_rate not in bounds:
                return LabelledAnswers([], 0, pass_rate, mean_tokens)
        answers += await sample(sampler, range(num_first, num_alone))
        labelled = await _labelled(sampler, recipe, answers[:num_alone])
    finally:
        close(answers)
    rows = [sampler.row(answer) for answer in labelled if answer.is_ended]
    return LabelledAnswers(rows, sum(answer.num_rollouts for answer in labelled), pass_rate, mean_tokens)


async def _labelled(sampler: Sampler, recipe: RolloutRecipe, answers: Sequence[SampledAnswer]) -> list[SampledAnswer]:
    """The sampled answers with their labels, or the chains, whose first attempts such answers would be."""
    if recipe.num_attempts > 1:
        return await sample_chains(sampler, recipe.num_samples, recipe.num_attempts, recipe.context)
    if recipe.num_rollouts == 0:
        label_by_own_end(sampler, answers)
    elif recipe.labeller == "first-error":
        await label_by_first_error(sampler, answers, recipe.num_rollouts)
    else:
        await label_every_step(sampler, answers, recipe.num_rollouts)
    return list(answers)
