"""`ttc report`: result files in, a table on the terminal and one HTML page out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from engine.errors import UserError


def report(
    results: Annotated[list[str], typer.Argument(help="Files that `ttc search` wrote.", show_default=False)],
    out: Annotated[str, typer.Option(help="The page.")] = "report.html",
    title: Annotated[str, typer.Option(help="Of the page.")] = "Search report",
) -> None:
    """Shows accuracy and cost per strategy, and writes a page with charts and search trees."""
    from rich.console import Console

    from engine.reports import compare, read_rows, summarize, terminal_table, write_report

    rows = read_rows(*results)
    if not rows:
        raise UserError(f"no result row in {', '.join(results)}")
    seconds = seconds_of(results)
    write_report(rows, out, title=title, seconds=seconds)
    Console(width=None).print(terminal_table(summarize(rows, seconds=seconds), compare(rows)))
    typer.echo(f"{len(rows)} rows: {out}")


def seconds_of(results: Sequence[str]) -> dict[str, float]:
    """Wall-clock seconds by strategy, from the run ledgers beside the results.

    A strategy of a file without a ledger is left out: its time is not known.
    """
    from engine.reports import journal_path, read_rows

    totals: dict[str, float] = {}
    unknown: set[str] = set()
    for path in results:
        try:
            lines = journal_path(path).read_bytes().split(b"\n")[1:-1]
        except OSError:
            unknown.update(row["strategy"] for row in read_rows(path))
            continue
        for line in lines:
            strategy, seconds = _timed(line, path)
            totals[strategy] = totals.get(strategy, 0.0) + seconds
    return {strategy: total for strategy, total in totals.items() if strategy not in unknown}


def _timed(line: bytes, path: str) -> tuple[str, float]:
    """Strategy and seconds of a row in the run ledger beside a result file."""
    from engine.reports import journal_path

    try:
        entry = json.loads(line)
        return str(entry["row"]["strategy"]), float(entry["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{journal_path(path)} is damaged: {error}: {line[:60]!r}") from None
