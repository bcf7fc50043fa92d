"""`ttc verify`: whether a verifier holds up when more answers are searched, as a line, a table and a chart."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup
from rich import box
from rich.table import Table

from engine.reports.charts import Point, accuracy_chart
from engine.results.overoptimisation import SURE

SERIES = ("best-scored", "weighted vote", "majority")
_TRAITS = {
    "best-scored, wrong and sure": "sure_and_wrong",
    "best-scored, an idle step": "idle",
    "best-scored, too short": "too_short",
}


def verdict(figures: Mapping) -> str:
    """Whether the best-scored answer of many is right as often as that of few."""
    change, sizes = figures["change"], figures["sizes"]
    few, many = (figures["best-scored"][sizes.index(size)]["accuracy"] for size in (change["since"], sizes[-1]))
    low, high = change["interval"]
    if change["value"] >= 0:
        found = "holds up"
    else:
        found = "is over-optimised" if high < 0 else "falls within its interval"
    return (
        f"the best-scored answer of {sizes[-1]} is right in {_percent(many)}, of {change['since']} in {_percent(few)} "
        f"({100 * change['value']:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}): {found}"
    )


def notes(figures: Mapping) -> list[str]:
    """The verdict, and a line for each search and budget."""
    lines = [verdict(figures)]
    for strategy, points in figures.get("searches", {}).items():
        for each in points:
            lines.append(
                f"{strategy} at {each['budget']}: right in {_percent(each['accuracy'])}, of the chosen answers "
                f"{_percent(each['idle'])} have an idle step and {_percent(each['too_short'])} are too short"
            )
    return lines


def table_rows(figures: Mapping) -> list[tuple[str, list[str]]]:
    """A name and a cell per size, and one for all samples."""
    rows = [(name, [*(_percent(each["accuracy"]) for each in figures[name]), ""]) for name in SERIES]
    for name, key in _TRAITS.items():
        rows.append((name, [_percent(value) for value in (*figures[key]["best_scored"], figures[key]["all"])]))
    return rows


def headings(figures: Mapping) -> list[str]:
    """Those of the cells of `table_rows`."""
    return [f"of {size}" for size in figures["sizes"]] + ["all samples"]


def overoptimisation_table(figures: Mapping) -> Table:
    """The figures for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    for name in headings(figures):
        table.add_column(name, justify="right", no_wrap=True)
    for name, cells in table_rows(figures):
        table.add_row(name, *cells)
    return table


def overoptimisation_chart(figures: Mapping) -> Markup:
    """Accuracy against the number of samples, and that of searches against their budget."""
    lines = {
        name: [
            Point(size, is_measured=True, **each) for size, each in zip(figures["sizes"], figures[name], strict=True)
        ]
        for name in SERIES
    }
    for strategy, points in figures.get("searches", {}).items():
        names = ("budget", "accuracy", "low", "high")
        lines[strategy] = [Point(**{name: each[name] for name in names}, is_measured=True) for each in points]
    order = list(lines)
    return accuracy_chart(
        lines,
        label="accuracy against the number of samples",
        x_label="samples (or the budget of a search)",
        index_of=lambda name: order.index(name) + 1,
    )


def explanation() -> str:
    """What the rows of the table are, for the page."""
    return (
        f"Wrong and sure: scored over {SURE:g}. An idle step repeats one of the answer, or equates a thing with "
        "itself. Too short: fewer steps than any right sample of the question has."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
