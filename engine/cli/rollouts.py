"""`ttc rollouts`: sampled answers whose steps are labelled by how often rollouts from there end right."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from engine import distributed
from engine.cli.options import Given, command, option
from engine.cli.outputs import RunOutput, left_out
from engine.cli.replicas import REPLICAS, ReplicaOptions
from engine.cli.runs import check_out, cut_answers, run_rows
from engine.config import EngineConfig
from engine.errors import UserError
from engine.files import write_atomically
from engine.model import resolve_folder
from engine.model.digest import checkpoint_digest
from engine.results import Journal
from engine.results.digests import problems_digest
from engine.results.rows import Row, check_row, is_error_row, stored_lines
from engine.runtime import LLM
from engine.tasks import get_task
from engine.tasks.sources import read_rows
from engine.training.pass_rates import Selection
from engine.training.rollouts import UNSEARCHED, RolloutRecipe, generate, questions
from engine.training.searched import SearchedQuestion, searched_questions
from engine.training.stepwise import check_threshold, write_stepwise
from engine.training.workers import generate_in_workers
from engine.types import Problem

ROLLOUTS = "out/rollouts.jsonl"


@dataclass(frozen=True)
class Output(RunOutput):
    """Where the labelled answers go."""

    out: str = ROLLOUTS
    """Labelled answers, one JSON row each."""

    trl: str | None = None
    """Write the answers to this file too, as TRL's data sets are."""

    trl_threshold: float | None = None
    """Labels of --trl are true from here on."""


_MODEL = "policy device dtype max_batch num_blocks"
_FIELDS, _OUTPUT = (" ".join(each.name for each in fields(cls)) for cls in (RolloutRecipe, Output))


@command({"": f"{_FIELDS} {_MODEL} workers {REPLICAS} {_OUTPUT}"})
def rollouts(
    given: Given,
    recipe: RolloutRecipe,
    model: EngineConfig,
    output: Output,
    cluster: ReplicaOptions,
    workers: Annotated[int, option("Processes that share a CPU's cores; changes no row.")] = 1,
) -> None:
    """Labels the steps of sampled answers by how often rollouts from there end right.

    With --from those of the paths of searches, rejected steps included. With --pass-rate only of questions that the
    policy solves sometimes; those with short answers come first in the file, so that its first lines are the easy part.
    """
    output, replicas = output.placed(given), cluster.asked(given, model)
    _check(given, recipe, model, output, workers)
    _check_cluster(recipe, cluster, workers)
    for path in (output.out, *([] if output.trl is None else [output.trl])):
        check_out(path, recipe.problems, recipe.results)
    problems = questions(recipe) if recipe.results is None else _searched(recipe)
    folder = resolve_folder(model.policy)
    on_error = "yield" if output.keeps_errors else "raise"
    limits = {each: getattr(model, each) for each in ("device", "dtype", "max_batch", "num_blocks")}
    loaded = {"folder": folder, **limits}
    llm = LLM.load(**loaded) if workers == 1 and replicas is None else None
    bounds = recipe.pass_bounds
    selection = None if bounds is None else Selection(bounds, recipe.num_questions)

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        needs = (lambda index: True) if selection is None else selection.needs
        if replicas is not None:
            labels = distributed.label(recipe, todo, problems, loaded, replicas, on_error)
        elif llm is not None:
            labels = generate(llm, recipe, takewhile(needs, todo), problems, on_error)
        else:
            labels = generate_in_workers(workers, loaded, recipe, todo, problems, needs, on_error)
        for index, labelled in labels:
            row = {"id": str(index), "seed": recipe.seed, "strategy": "rollouts"}
            row |= {"rows": labelled.rows, "num_rollouts": labelled.num_rollouts}
            row |= {} if labelled.error is None else {"error": labelled.error}
            chosen_by = {"pass_rate": labelled.pass_rate, "mean_tokens": labelled.mean_tokens}
            yield index, row if selection is None else row | chosen_by

    def write(journal: Journal) -> str:
        return _write(journal.done, recipe, output, selection, problems)

    closing_line = run_rows(
        output,
        _depends_on(recipe, model, folder, problems),
        make_rows,
        num_total=len(problems),
        label="questions",
        write=write,
        selection=selection,
    )
    typer.echo(closing_line)


def _check(given: Given, recipe: RolloutRecipe, model: EngineConfig, output: Output, workers: int) -> None:
    """Raises UserError for options that do not go together."""
    check_threshold(output.trl_threshold)
    if output.trl_threshold is not None and output.trl is None:
        raise UserError(f"--trl-threshold has no effect without --trl, got {output.trl_threshold}")
    if workers < 1 or (workers > 1 and model.device != "cpu"):
        raise UserError(f"workers must be at least 1, and 1 but on a CPU, got {workers} with device {model.device!r}")
    if recipe.pass_rate is not None:
        output.refuse_shard("--pass-rate", "as which questions are kept depends on those before them")
    if output.trl is not None:
        output.refuse_shard("--trl", "and is written by the same command without --shard once they are merged")
    needed = {"pass_samples": "pass_rate", "max_tries": "pass_rate", "max_paths": "results"}
    for name in given:
        if getattr(recipe, needed.get(name, "task")) is None:
            raise UserError(f"{_flag(name)} has no effect without {_flag(needed[name])}, got {getattr(recipe, name)}")
        if recipe.results is not None and name in UNSEARCHED:
            raise UserError(f"{_flag(name)} has no effect on the answers of --from, got {getattr(recipe, name)!r}")


def _check_cluster(recipe: RolloutRecipe, cluster: ReplicaOptions, workers: int) -> None:
    """Raises UserError for what --ray does not go with."""
    if cluster.ray is None:
        return
    if recipe.pass_rate is not None:
        raise UserError(
            f"--pass-rate is not for --ray, as which questions are kept depends on others, got {cluster.ray!r}"
        )
    if workers > 1:
        raise UserError(f"--ray has replicas in the place of --workers, got {workers}")


def _flag(name: str) -> str:
    return "--from" if name == "results" else f"--{name.replace('_', '-')}"


def _searched(recipe: RolloutRecipe) -> list[SearchedQuestion]:
    """The questions of a file of results, read row by row: trees are large."""

    num_errors = 0

    def rows() -> Iterator[tuple[str, Row]]:
        nonlocal num_errors
        for origin, row in read_rows(recipe.results, what="results"):
            try:
                check_row(row)
            except UserError as error:
                raise UserError(f"{origin}: {error}") from None
            if is_error_row(row):
                num_errors += 1
            else:
                yield origin, row

    found = searched_questions(
        rows(), recipe.num_questions, recipe.max_paths, recipe.seed, only_ended=not recipe.num_rollouts
    )
    if not any(question.paths for question in found):
        raise UserError(f"{recipe.results} holds no path that can be labelled, got {len(found)} questions")
    if num_errors:
        warnings.warn(left_out(num_errors), stacklevel=2)
    return found


def _depends_on(recipe: RolloutRecipe, model: EngineConfig, folder: Path, problems: Sequence[Problem]) -> dict:
    """All that the rows depend on."""
    named = recipe.settings | {"policy_digest": checkpoint_digest(folder), "dtype": model.dtype}
    named |= {} if model.device == "cpu" else {"device": model.device}
    if recipe.results is not None:
        with open(recipe.results, "rb") as file:
            return named | {"from": hashlib.file_digest(file, "blake2b").hexdigest()[:24]}
    if recipe.problems is None:
        return named
    if recipe.max_tries is not None:  # of all, so that a run that found too few goes on with more tries
        problems = questions(replace(recipe, max_tries=None))
    return named | {"problems": problems_digest(problems)}


def _write(
    done: Mapping[int, Row],
    recipe: RolloutRecipe,
    output: Output,
    selection: Selection | None,
    problems: Sequence[Problem],
) -> str:
    """Writes the answers, those of every question in the questions' order or a selection's; what to say of them."""
    chosen = sorted(done) if selection is None else selection.chosen(done)
    answers = [answer for index in chosen for answer in done[index]["rows"]]
    labelled = [index for index in chosen if not is_error_row(done[index])]
    if selection is not None and not chosen:
        raise UserError(f"no question is {selection.summary(done)}")
    write_atomically(output.out, b"".join(stored_lines(done[index]) for index in chosen))
    if output.trl is not None:
        delimiter = get_task(recipe.task).delimiter
        write_stepwise(answers, Path(output.trl), delimiter, threshold=output.trl_threshold)
    num_sampled = len(labelled) * recipe.num_samples * recipe.num_attempts
    if recipe.results is not None:
        num_sampled = sum(len(problems[index].paths) for index in labelled)
    parts = [
        "" if selection is None else selection.summary(done),
        "" if recipe.results is None else f"{len(answers):,} paths",
        f"{sum(done[index].get('num_rollouts', 0) for index in chosen):,} rollouts" if recipe.num_rollouts else "",
        cut_answers(num_sampled - len(answers), num_sampled),
    ]
    return ", ".join(filter(None, parts))
