"""`ttc verify`: labelled answers in; how well a verifier's scores fit them out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.options import command, option
from engine.config import EngineConfig
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.reports.verifier import ScoredAnswer
    from engine.results.overoptimisation import Pool
    from engine.search.protocols import Verifier
    from engine.types import Problem, Step

_NAMES = ("prm", "trunk", "orm")


@dataclass(frozen=True)
class Models(EngineConfig):
    """The models whose scores are shown."""

    task: str = "walks"
    """Of the questions; where it can judge steps, first wrong ones are exact."""


@command(
    {
        "": "results verifier task limit seed out json_file",
        "Models": "policy prm prm_spec orm orm_spec trunk_head",
    }
)
def verify(
    models: Models,
    rows: Annotated[
        str | None, typer.Argument(help="Labelled answers that `ttc rollouts` wrote.", show_default=False)
    ] = None,
    results: Annotated[
        str | None, option("Files of `ttc search --strategy best-of-n`, with commas between them: more samples.")
    ] = None,
    verifier: Annotated[str, option("prm, trunk or orm.")] = "prm",
    limit: Annotated[int | None, option("Score the first so many answers.")] = None,
    seed: Annotated[int, option("Of the halves: one chooses the threshold of wrong steps.")] = 0,
    out: Annotated[str, option("The page.")] = "verifier.html",
    json_file: Annotated[str | None, option("Write the figures to this file too.", "--json")] = None,
) -> None:
    """Shows how well a verifier's scores fit the labels of held-out answers, and whether they hold up under search.

    Reliability, ROC, the area within questions, the area of first wrong steps against right ones at the same place,
    and how often the first wrong step is found: the true one where the task can judge steps, else the first whose
    label is 0. Where questions have several answers, or with --results: the accuracy of the best-scored of 1, 4, 16 ...
    answers and of votes. The questions have to be others than those that the verifier was trained on.
    """
    from rich.console import Console

    from engine.files import write_atomically
    from engine.reports.overoptimisation import notes, overoptimisation_table
    from engine.reports.verifier import first_wrong_line, verifier_table, write_verifier_report

    if rows is None and results is None:
        raise UserError("name labelled answers, --results or both, got neither")
    if verifier not in _NAMES:
        raise UserError(f"verifier must be one of {', '.join(_NAMES)}, got {verifier!r}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    figures = pools = None
    if rows is not None:
        figures, pools = _labelled(rows, models, verifier, limit, seed)
    searched = _of_pools(pools or [], seed) if results is None else _of_results(results, models.task, limit, seed)
    facts = {"rows": ", ".join(filter(None, (rows, results)))}
    judge = {} if figures is None else {"verifier": verifier}  # what has scored results is not known
    if figures is not None:
        facts |= judge | {"answers": f"{figures['num_answers']:,}", "questions": f"{figures['num_questions']:,}"}
        facts["right"] = f"{100 * figures['share_right']:.1f} %"
    write_verifier_report(figures, searched, out, title="Verifier report", facts=facts)
    if json_file is not None:
        found = {**judge, **(figures or {}), "searched": searched}
        write_atomically(json_file, (json.dumps(found, indent=2) + "\n").encode())
    console = Console(width=None)
    if searched is not None:
        console.print(overoptimisation_table(searched))
        typer.echo("\n".join(notes(searched)))
    if figures is None:
        typer.echo(f"{searched['num_pools']:,} pools of {searched['num_questions']:,} questions: {out}")
        return
    console.print(verifier_table(figures))
    typer.echo(first_wrong_line(figures))
    typer.echo(f"{figures['num_answers']:,} answers to {figures['num_questions']:,} questions: {out}")


def _labelled(rows: str, models: Models, verifier: str, limit: int | None, seed: int) -> tuple[dict, list[Pool]]:
    """The figures of labelled answers, and their samples by question."""
    from engine.engine import Engine
    from engine.reports.verifier import verifier_figures
    from engine.results.overoptimisation import Sample, pools_by_question, steps_of
    from engine.training.stepwise import read_stepwise

    found = read_stepwise(Path(rows))[:limit]
    for row in found:
        if not row["completions"]:
            raise UserError(f"{rows}: an answer without a step cannot be scored, got {row['prompt'][:60]!r}")
    engine = Engine.from_config(models)
    judge = engine.resolve_verifier(verifier)
    answers, task = score_answers(engine, judge, found), engine.task
    figures = verifier_figures(answers, judges=judge.judges, seed=seed)
    pairs = (
        (
            row["prompt"],
            Sample(
                steps_of(row["completions"], task.delimiter),
                task.extract("".join(row["completions"])),
                each.scores[-1],
                each.is_right,
            ),
        )
        for row, each in zip(found, answers, strict=True)
        if each.is_ended
    )
    return figures, pools_by_question(pairs)


def _of_pools(pools: list[Pool], seed: int) -> dict | None:
    """The figures by number of samples, where there are several."""
    from engine.results.overoptimisation import overoptimisation, pool_sizes

    return overoptimisation(pools, seed) if len(pool_sizes(pools)) > 1 else None


def _of_results(results: str, task: str, limit: int | None, seed: int) -> dict:
    """The figures of result rows: those of the largest best-of-n as samples, those of other searches as they are.

    Raises UserError where no row has scored samples.
    """
    from engine.cli.outputs import left_out
    from engine.results import read_results
    from engine.results.overoptimisation import row_pool, searched_points
    from engine.tasks import get_task

    found, errors = read_results(*results.split(","))
    if errors:
        warnings.warn(left_out(len(errors)), stacklevel=2)
    rows = [row for row in found if row["correct"] is not None]
    scored = [row for row in rows if row["strategy"] == "best-of-n" and row.get("answers")]
    most = max((row["budget"] for row in scored), default=0)
    delimiter = get_task(task).delimiter
    pools = [row_pool(row, delimiter) for row in scored if row["budget"] == most][:limit]
    figures = _of_pools(pools, seed)
    if figures is None:
        raise UserError(f"{results}: no graded rows of --strategy best-of-n with two answers or more, got {len(rows)}")
    others = [row for row in rows if row["strategy"] not in ("best-of-n", "majority") and row.get("answers")]
    return figures | {"searches": searched_points(others, pools, delimiter)}


def score_answers(engine: Engine, judge: Verifier, rows: Sequence[dict]) -> list[ScoredAnswer]:
    """The verifier's scores of every row, many answers in one forward.

    Raises UserError for an answer over the context of a model.
    """
    from engine.reports.verifier import ScoredAnswer
    from engine.runtime import Batcher
    from engine.types import Problem

    problems = [Problem(str(index), row["prompt"]) for index, row in enumerate(rows)]
    models = [engine.policy, *([] if judge.llm is None else [judge.llm])]
    runs = (_score(engine, judge, problem, row) for problem, row in zip(problems, rows, strict=True))
    scores: list[list[float]] = [[] for _ in rows]
    for index, result in Batcher().run(models, runs, rows_each=1):
        if isinstance(result, Exception):
            raise result
        scores[index] = result
    return [
        ScoredAnswer(
            row["prompt"], tuple(run), tuple(row["labels"]), _first_wrong(engine, problem, row), _is_ended(engine, row)
        )
        for problem, row, run in zip(problems, rows, scores, strict=True)
    ]


async def _score(engine: Engine, judge: Verifier, problem: Problem, row: dict) -> list[float]:
    """One score per step, or one of the whole answer where the verifier judges those."""
    from engine.accounting import Ledger
    from engine.types import Step

    steps = _steps(engine, row)
    if judge.reads_trunk:
        return await _trunk_scores(engine, problem, steps)
    if judge.judges == "answers":
        ids = tuple(token for step in steps for token in step.token_ids)
        steps = [Step(ids, "".join(step.text for step in steps), "eos")]
    earlier = {}
    if judge.reads_history and row.get("history"):
        text = engine.policy.vocabulary.decode_part
        earlier["history"] = [(Step(tuple(ids), text(ids), "eos"),) for ids in row["history"]]
    branch = await judge.open(problem, ledger=Ledger(), **earlier)
    try:
        return (await judge.score([branch], [steps]))[0]
    finally:
        branch.close()


async def _trunk_scores(engine: Engine, problem: Problem, steps: Sequence[Step]) -> list[float]:
    """Those of the head on the policy's trunk, read where a search reads them: before the last token of a step."""
    llm = engine.policy
    prompt = engine.prompt_ids(problem.prompt)
    branch = llm.open(prompt[:-1] or prompt)
    try:
        ids = prompt[-1:] if len(prompt) > 1 else []
        places = []
        for step in steps:
            ids = [*ids, *step.token_ids]
            places.append(max(0, len(ids) - 2))
        request = llm.queue_append([branch], [ids], score_at=[places])
        await request
        return request.scores[0]
    finally:
        branch.close()


def _steps(engine: Engine, row: dict) -> list[Step]:
    """The steps of a row as a policy would have sampled them."""
    from engine.types import Step

    ids, is_ended = row.get("token_ids"), _is_ended(engine, row)
    if ids is None:
        ids = [engine.policy.encode(text, is_start=False) for text in row["completions"]]
        ids[-1] += engine.policy.config.eos_token_ids[:1] if is_ended else ()
    last = len(ids) - 1 if is_ended else None
    return [
        Step(tuple(run), text, "eos" if index == last else "step")
        for index, (run, text) in enumerate(zip(ids, row["completions"], strict=True))
    ]


def _is_ended(engine: Engine, row: dict) -> bool:
    """Whether a row is a whole answer: one that ends in the delimiter ends in a step that a search rejected."""
    return not row["completions"][-1].endswith(engine.task.delimiter)


def _first_wrong(engine: Engine, problem: Problem, row: dict) -> int:
    from engine.verifiers.figures import first_zero

    if engine.task.is_exact:
        return engine.task.first_wrong_step(problem, row["completions"])
    return first_zero(row["labels"])
