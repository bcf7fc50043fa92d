"""`ttc grade`: how right any result file's answers are, at budgets of 1, 2, 4 … of its completions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from engine.tasks import Task

MEASURES = ("pass", "majority", "naive", "weighted")


def grade(
    results: Annotated[str, typer.Argument(help="JSONL or Parquet file with `completions` and `answer`.")],
    task: Annotated[str, typer.Option(help="How answers are found and graded.")] = "math",
    answer_column: Annotated[str | None, typer.Option(help="Of the gold answers; by default the task's.")] = None,
    agg_strategy: Annotated[str, typer.Option(help="last, min, prod, mean of an answer's step scores.")] = "last",
    json_file: Annotated[str | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Grades the answers of a result file again, ours or another tool's.

    At each n the first n completions of a row count: pass (one of them is right), majority vote, naive (the best
    scored one), and votes weighted by scores. Intervals are 95 % bootstraps over problems.
    """
    from rich.console import Console

    from engine.cli.outputs import left_out
    from engine.files import write_atomically
    from engine.search.aggregate import check_agg_strategy
    from engine.tasks import get_task

    check_agg_strategy(agg_strategy)
    pools, num_without_gold, num_errors = read_pools(results, get_task(task), agg_strategy, answer_column)
    figures = accuracies(pools)
    if json_file is not None:
        write_atomically(json_file, (json.dumps(figures, indent=2) + "\n").encode())
    Console(width=None).print(_table(figures))
    notes = [f"{len(pools)} rows of {len({pool.problem for pool in pools})} problems, task {task}"]
    if any(pool.scores for pool in pools):
        notes.append(f"scores: {agg_strategy}")
    num_failed = sum(verdict is None for pool in pools for verdict in pool.verdicts.values())
    notes += [f"{num_failed} answers could not be graded"] if num_failed else []
    notes += [f"{num_without_gold} rows have no gold answer"] if num_without_gold else []
    notes += [left_out(num_errors)] if num_errors else []
    typer.echo(", ".join(notes))


@dataclass(frozen=True)
class Pool:
    """A row as far as votes look at it."""

    problem: str  # what intervals are clustered by
    answers: list[str | None]  # one per completion; equal answers are equal strings
    scores: list[float | None] | None  # one per completion, None where it could not be scored
    verdicts: dict[str, bool | None]  # of each distinct answer; None where the grader cannot tell


def read_pools(source: str, task: Task, agg_strategy: str, answer_column: str | None) -> tuple[list[Pool], int, int]:
    """The rows that have a gold answer, graded; how many have none, and how many an error in the place of a result.

    Raises UserError that names the line and what is wrong with it, or for a source without a gold answer.
    """
    from engine.results.rows import is_error_row
    from engine.tasks.data import gold_answer
    from engine.tasks.sources import read_rows

    columns = (answer_column,) if answer_column else task.answer_columns
    golds: list[str] = []
    pools: list[Pool] = []
    num_without_gold = num_errors = 0
    for origin, row in read_rows(source, what="results"):
        if isinstance(row, dict) and is_error_row(row) and "completions" not in row:
            num_errors += 1
            continue
        try:
            pool = _pool(row, origin, task, agg_strategy)
            if not any(name in row for name in columns):
                raise UserError(f"no field {' or '.join(map(repr, columns))}")
            gold = gold_answer(row, columns)
        except ValueError as error:
            raise UserError(f"{origin}: {error}") from None
        if gold is None:
            num_without_gold += 1
        else:
            golds.append(task.gold(gold))
            pools.append(pool)
    if not pools:
        raise UserError(f"{source} holds no row with a gold answer")
    distinct = [(index, answer) for index, pool in enumerate(pools) for answer in dict.fromkeys(pool.answers) if answer]
    problems = [pools[index].problem for index, _ in distinct]
    rights = task.are_right([(answer, golds[index]) for index, answer in distinct], problems)
    for (index, answer), is_right in zip(distinct, rights, strict=True):
        pools[index].verdicts[answer] = is_right
    return pools, num_without_gold, num_errors


def _pool(row: object, origin: str, task: Task, agg_strategy: str) -> Pool:
    from engine.tasks.sources import shown

    if not isinstance(row, dict):
        raise UserError(f"not a JSON object: {shown(row)}")
    completions = row.get("completions")
    is_texts = isinstance(completions, list) and all(isinstance(text, str) for text in completions)
    if not is_texts or not completions:
        raise UserError(f"'completions' must be a list of one text or more, got {shown(completions)}")
    for name in ("scores", "answers"):
        value = row.get(name)
        if value is not None and (not isinstance(value, list) or len(value) != len(completions)):
            raise UserError(f"{name!r} must have one entry for each of the {len(completions)} completions")
    answers = row.get("answers")  # ours: null for an answer that was cut off, which may not vote
    if answers is None:
        answers = [task.extract(text) for text in completions]
    elif not all(answer is None or isinstance(answer, str) for answer in answers):
        raise UserError(f"'answers' must be texts or nulls, got {shown(answers)}")
    scores = row.get("scores")
    if scores is not None:
        scores = [_score(entry, agg_strategy) for entry in scores]
    problem = next((row[name] for name in ("id", "unique_id", "problem") if row.get(name) is not None), origin)
    return Pool(str(problem), _merged(answers, task), scores, {})


def _merged(answers: Sequence[str | None], task: Task) -> list[str | None]:
    from engine.search import merge_equal

    if task.classify is None:
        return list(answers)
    return [each.answer for each in merge_equal(_candidates(answers, None), task.classify)]


def _score(entry: object, agg_strategy: str) -> float | None:
    """The score of a completion from its steps' scores, or from the one that it has."""
    from engine.search.aggregate import aggregate
    from engine.tasks.sources import shown

    steps = entry if isinstance(entry, list) else [entry]
    if not all(step is None or (isinstance(step, int | float) and not isinstance(step, bool)) for step in steps):
        raise UserError(f"'scores' must hold numbers, nulls or lists of them, got {shown(entry)}")
    if not all(step is not None and math.isfinite(step) for step in steps):
        return None
    return aggregate(steps, agg_strategy)


def _candidates(answers: Sequence[str | None], scores: Sequence[float | None] | None) -> list:
    from engine.types import Candidate

    weights = scores or [0.0] * len(answers)
    pairs = zip(answers, weights, strict=True)
    return [Candidate("", None if score is None else answer, "eos", (), score or 0.0, 0, ()) for answer, score in pairs]


def accuracies(pools: Sequence[Pool]) -> dict[str, dict[str, object]]:
    """`{n: {pass, majority, naive, weighted, intervals, num_rows}}` at n = 1, 2, 4 … and all completions.

    Accuracies are within 0..1, null where no row has a verdict (or scores are missing); `intervals` has the same
    measures as [low, high]. A row with fewer than n completions counts with those that it has.
    """
    from engine.results.pools import sub_budgets
    from engine.results.statistics import bootstrap_interval

    most = max(len(pool.answers) for pool in pools)
    is_scored = all(pool.scores is not None for pool in pools)
    figures: dict[str, dict[str, object]] = {}
    for n in [*sub_budgets(most), most]:
        at_n: dict[str, object] = {}
        intervals: dict[str, list[float] | None] = {}
        for measure in MEASURES:
            is_known = is_scored or measure in ("pass", "majority")
            verdicts = [(_is_right(pool, n, measure), pool.problem) for pool in pools] if is_known else []
            known = [(float(verdict), problem) for verdict, problem in verdicts if verdict is not None]
            at_n[measure] = sum(value for value, _ in known) / len(known) if known else None
            intervals[measure] = list(bootstrap_interval(*zip(*known, strict=True))) if known else None
        figures[str(n)] = {**at_n, "intervals": intervals, "num_rows": len(pools)}
    return figures


def _is_right(pool: Pool, n: int, measure: str) -> bool | None:
    """Whether the first n completions of a row give the right answer; None where the grader cannot tell."""
    from engine.search import vote

    answers = pool.answers[:n]
    if measure == "pass":
        verdicts = [pool.verdicts[answer] for answer in answers if answer]
        return True if True in verdicts else None if None in verdicts else False
    scores = None if measure == "majority" else pool.scores[:n]
    answer, _ = vote(_candidates(answers, scores), measure)
    return pool.verdicts[answer] if answer else False


def _table(figures: dict[str, dict]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in ("n", *(f"{measure} %" for measure in MEASURES)):
        table.add_column(name, justify="right", no_wrap=True)
    for n, at_n in figures.items():
        cells = []
        for measure in MEASURES:
            interval = at_n["intervals"][measure]
            cells.append("-" if interval is None else _percent(at_n[measure], *interval))
        table.add_row(n, *cells)
    return table


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.3g} ({100 * low:.3g}-{100 * high:.3g})"
