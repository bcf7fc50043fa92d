"""`ttc report`: result files in, a table on the terminal and one HTML page out."""

from __future__ import annotations

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

    from engine.cli.outputs import left_out, uncounted
    from engine.reports import compare, summarize, terminal_table, write_report
    from engine.results import read_results, seconds_by_strategy

    rows, errors = read_results(*results)
    note = f", {left_out(len(errors))}" if errors else ""
    if not rows:
        raise UserError(f"no result row in {', '.join(results)}{note}")
    seconds = seconds_by_strategy(results)
    write_report(rows, out, title=title, seconds=seconds)
    Console(width=None).print(terminal_table(summarize(rows, seconds=seconds), compare(rows)))
    remarks = filter(None, (f"{len(rows)} rows{note}", uncounted(rows)))
    typer.echo(f"{', '.join(remarks)}: {out}")
