"""`ttc verify`: labelled answers in; how well a verifier's scores fit them out."""

from __future__ import annotations

import json
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
        "": "verifier task limit seed out json_file",
        "Models": "policy prm prm_spec orm orm_spec trunk_head",
    }
)
def verify(
    rows: Annotated[str, typer.Argument(help="Labelled answers that `ttc rollouts` wrote.", show_default=False)],
    models: Models,
    verifier: Annotated[str, option("prm, trunk or orm.")] = "prm",
    limit: Annotated[int | None, option("Score the first so many answers.")] = None,
    seed: Annotated[int, option("Of the halves: one chooses the threshold of wrong steps.")] = 0,
    out: Annotated[str, option("The page.")] = "verifier.html",
    json_file: Annotated[str | None, option("Write the figures to this file too.", "--json")] = None,
) -> None:
    """Shows how well a verifier's scores fit the labels of held-out answers.

    Reliability, ROC, the area within questions, the area of first wrong steps against right ones at the same place,
    and how often the first wrong step is found: the true one where the task can judge steps, else the first whose
    label is 0. The answers have to be to questions that the verifier was not trained on.
    """
    from rich.console import Console

    from engine.engine import Engine
    from engine.files import write_atomically
    from engine.reports.verifier import first_wrong_line, verifier_figures, verifier_table, write_verifier_report
    from engine.training.stepwise import read_stepwise

    if verifier not in _NAMES:
        raise UserError(f"verifier must be one of {', '.join(_NAMES)}, got {verifier!r}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    found = read_stepwise(Path(rows))[:limit]
    for row in found:
        if not row["completions"]:
            raise UserError(f"{rows}: an answer without a step cannot be scored, got {row['prompt'][:60]!r}")
    engine = Engine.from_config(models)
    judge = engine.resolve_verifier(verifier)
    answers = score_answers(engine, judge, found)
    figures = verifier_figures(answers, judges=judge.judges, seed=seed)
    facts = {"verifier": verifier, "answers": f"{len(answers):,}", "questions": f"{figures['num_questions']:,}"}
    facts |= {"right": f"{100 * figures['share_right']:.1f} %", "rows": rows}
    write_verifier_report(figures, out, title="Verifier report", facts=facts)
    if json_file is not None:
        write_atomically(json_file, (json.dumps({"verifier": verifier, **figures}, indent=2) + "\n").encode())
    Console(width=None).print(verifier_table(figures))
    typer.echo(first_wrong_line(figures))
    typer.echo(f"{len(answers):,} answers to {figures['num_questions']:,} questions: {out}")


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
    for index, result in Batcher(models).run(runs, rows_each=1):
        if isinstance(result, Exception):
            raise result
        scores[index] = result
    return [
        ScoredAnswer(row["prompt"], tuple(run), tuple(row["labels"]), _first_wrong(engine, problem, row))
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

    ids = row.get("token_ids")
    if ids is None:
        ids = [engine.policy.encode(text, is_start=False) for text in row["completions"]]
        ids[-1] = [*ids[-1], *engine.policy.config.eos_token_ids[:1]]
    last = len(ids) - 1
    return [
        Step(tuple(run), text, "eos" if index == last else "step")
        for index, (run, text) in enumerate(zip(ids, row["completions"], strict=True))
    ]


def _first_wrong(engine: Engine, problem: Problem, row: dict) -> int:
    from engine.verifiers.figures import first_zero

    if engine.task.is_exact:
        return engine.task.first_wrong_step(problem, row["completions"])
    return first_zero(row["labels"])
