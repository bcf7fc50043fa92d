"""The charts of the report: accuracy against budget, cost by purpose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from engine.accounting import PURPOSES
from engine.reports import svg
from engine.reports.tables import STRATEGY_ORDER, StrategySummary, accuracy_of, group_rows, quantity
from engine.results.pools import accuracy_at, pool_vote, sub_budgets
from engine.results.rows import Row
from engine.results.statistics import mean_interval

NUM_COLOURS = 8  # strategy classes s0 .. s7 of the style sheet


@dataclass(frozen=True)
class Point:
    """An accuracy at one budget."""

    budget: float  # generations, or another quantity on the horizontal axis
    accuracy: float  # 0..1
    low: float  # 95 % interval
    high: float
    is_measured: bool  # False: computed from the samples of a larger budget


def strategy_index(strategy: str) -> int:
    """The index of a strategy's colour and marker, the same on every page."""
    if strategy in STRATEGY_ORDER:
        return STRATEGY_ORDER.index(strategy)
    return sum(strategy.encode("utf-8", "replace")) % NUM_COLOURS


def accuracy_curves(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Points per strategy by rising budget, from graded rows.

    For majority and best-of-n, whose candidates are independent, the largest budget also gives the
    budgets 1, 2, 4 ... below it: the mean over disjoint runs of that many candidates, so every
    sample is used once.
    """
    curves: dict[str, dict[int, Point]] = {}
    pools: dict[str, tuple[int, list[Row]]] = {}
    for (strategy, budget), group in group_rows(rows).items():
        graded = [row for row in group if accuracy_of(row) is not None]
        if graded:
            point = _point(budget, [accuracy_of(row) for row in graded], graded, True)
            curves.setdefault(strategy, {})[budget] = point
            pools[strategy] = (budget, graded)  # the largest comes last
    for strategy, (budget, graded) in pools.items():
        graded = [row for row in graded if row.get("answers")]
        rule = pool_vote(strategy, graded)
        for num_samples in sub_budgets(budget) if rule and graded else []:
            if num_samples not in curves[strategy]:
                values = [accuracy_at(row, rule, num_samples) for row in graded]
                curves[strategy][num_samples] = _point(num_samples, values, graded, False)
    return {strategy: [points[budget] for budget in sorted(points)] for strategy, points in curves.items()}


def _point(budget: int, values: list[float], rows: list[Row], is_measured: bool) -> Point:
    low, high = mean_interval(values, [row["id"] for row in rows])
    return Point(budget, sum(values) / len(values), low, high, is_measured)


def accuracy_chart(
    curves: dict[str, list[Point]],  # by strategy
    *,
    label: str = "accuracy against budget, one line per strategy",  # for screen readers
    x_label: str = "budget (generations per problem)",
    is_log: bool = True,  # whether the horizontal axis is log2(budget)
    ticks: Sequence[tuple[float, str]] | None = None,  # (value, text) of the horizontal axis; by default all budgets
    index_of: Callable[[str], int] = strategy_index,  # strategy -> colour and marker
) -> Markup:
    """A chart of accuracy against budget, one line per strategy; `single` is a level line for comparison."""
    width, height, left, right, top, bottom = 760, 400, 58, 150, 16, 52
    right = max(right, 46 + round(7.3 * max(map(len, curves))))  # room for the names
    points = [point for line in curves.values() for point in line]
    levels = svg.nice_ticks(*_accuracy_range(points))
    scale = math.log2 if is_log else float
    budgets = sorted({point.budget for point in points})
    ticks = [(budget, str(budget)) for budget in budgets] if ticks is None else ticks
    ends = [scale(value) for value in (budgets[0], budgets[-1], *(value for value, _ in ticks))]
    first, last = min(ends), max(ends)
    span = max(last - first, 1e-9)

    def x(budget: float) -> float:
        inset = 14.0
        share = (scale(budget) - first) / span if last > first else 0.5
        return left + inset + share * (width - left - right - 2 * inset)

    def y(accuracy: float) -> float:
        return top + (levels[-1] - 100 * accuracy) / (levels[-1] - levels[0]) * (height - top - bottom)

    parts = accuracy_grid(levels, y, left, width - right)
    for budget in _spread_labels([value for value, _ in ticks], x):
        parts.append(svg.line(x(budget), height - bottom, x(budget), height - bottom + 5, class_="axis"))
        parts.append(svg.text(dict(ticks)[budget], x(budget), height - bottom + 20, "middle", class_="tick"))
    parts.append(svg.line(left, height - bottom, width - right, height - bottom, class_="axis"))
    parts.append(svg.text(x_label, (left + width - right) / 2, height - 8, "middle", class_="label"))
    parts.append(accuracy_label((top + height - bottom) / 2))
    ends_at = []
    for strategy, line in curves.items():
        parts.append(_curve(strategy, line, x, y, left, width - right, index_of(strategy)))
        ends_at.append((y(line[-1].accuracy), strategy, 100 * line[-1].accuracy))
    parts += _end_labels(ends_at, width - right + 12, top + 6, height - bottom, index_of)
    return svg.image(parts, (width, height), label, class_="chart")


def accuracy_grid(levels: Sequence[float], y: Callable[[float], float], left: float, right: float) -> list[Markup]:
    """Horizontal lines with their percentages; `y` maps an accuracy (0..1) to pixels."""
    parts = []
    for level in levels:
        parts.append(svg.line(left, y(level / 100), right, y(level / 100), class_="grid"))
        parts.append(svg.text(f"{level:g}", left - 8, y(level / 100) + 4, "end", class_="tick"))
    return parts


def accuracy_label(middle: float) -> Markup:
    """The vertical axis's label, rotated."""
    turned = f"translate(14 {middle:.0f}) rotate(-90)"
    return svg.text("accuracy (%)", 0, 0, "middle", class_="label", transform=turned)


def _accuracy_range(points: list[Point]) -> tuple[float, float]:
    low, high = 100 * min(point.low for point in points), 100 * max(point.high for point in points)
    low = 0.0 if low < 40 else low
    return low, min(100.0, max(high, low + 5))


def _spread_labels(budgets: list[float], x) -> list[float]:
    """The budgets that can be labelled without overlap."""
    kept: list[float] = []
    for budget in budgets:
        if not kept or x(budget) - x(kept[-1]) >= 26:
            kept.append(budget)
    return kept


def _curve(strategy: str, points: list[Point], x, y, left: float, right: float, index: int) -> Markup:
    if strategy == "single":
        level = y(points[-1].accuracy)
        line = svg.line(left, level, right, level, class_="level")
        title = svg.element("title", f"single: {100 * points[-1].accuracy:.1f} %")
        return svg.group([title, line], class_=f"s{index}")
    parts = []
    # Intervals are shifted a little so that those of one budget do not overlap.
    aside = (index - 2) * 2.5
    if len(points) > 1:
        path = " ".join(f"{x(p.budget):.1f},{y(p.accuracy):.1f}" for p in points)
        parts.append(svg.element("polyline", points=path, class_="curve"))
    for p in points:
        title = svg.element(
            "title",
            f"{strategy}, {p.budget:g}: {100 * p.accuracy:.1f} % "
            f"({100 * p.low:.1f} to {100 * p.high:.1f})"
            + ("" if p.is_measured else ", from the samples of the largest budget"),
        )
        whisker = svg.line(x(p.budget) + aside, y(p.low), x(p.budget) + aside, y(p.high), class_="whisker")
        parts.append(svg.group([title, whisker, marker(index, x(p.budget), y(p.accuracy), p.is_measured)]))
    return svg.group(parts, class_=f"s{index}")


def marker(index: int, x: float, y: float, is_filled: bool = True) -> Markup:
    """A strategy's marker; the shape differs as well as the colour, for readers who cannot tell colours apart."""
    shapes = (
        ((-5, 0), (5, 0)),
        None,
        ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        ((0, -6), (6, 0), (0, 6), (-6, 0)),
        ((0, -6), (5.6, 4.4), (-5.6, 4.4)),
        ((0, 6), (5.6, -4.4), (-5.6, -4.4)),
        ((-6, -2), (0, -6), (6, -2), (4, 5), (-4, 5)),
        ((-5, -5), (0, -2), (5, -5), (5, 5), (0, 2), (-5, 5)),
    )
    style = "marker" if is_filled else "marker hollow"
    shape = shapes[index % len(shapes)]
    if shape is None:
        return svg.element("circle", cx=float(x), cy=float(y), r=5, class_=style)
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shape)
    return svg.element("polygon", points=points, class_=style)


def _end_labels(
    labels: list[tuple[float, str, float]], x: float, top: float, bottom: float, index_of: Callable[[str], int]
) -> list[Markup]:
    """Names at the right ends of the lines, moved apart where they would overlap."""
    labels, gap = sorted(labels), 17.0
    heights: list[float] = []
    for level, _, _ in labels:
        heights.append(max(level, top, heights[-1] + gap if heights else top))
    limit = bottom
    for index in reversed(range(len(heights))):  # what was pushed over the lower edge goes back up
        heights[index] = min(heights[index], limit)
        limit = heights[index] - gap
    parts = []
    for at, (_, strategy, percent) in zip(heights, labels, strict=True):
        index = index_of(strategy)
        mark = marker(index, x, at)
        if strategy == "single":
            mark = svg.line(x - 6, at, x + 6, at, class_="level")
        name = svg.text(strategy, x + 12, at + 4, class_="series")
        value = svg.element("tspan", f"  {percent:.1f}", class_="tick")
        name = name.replace(Markup("</text>"), value + Markup("</text>"))
        parts.append(svg.group([mark, name], class_=f"s{index}"))
    return parts


def cost_chart(summaries: Sequence[StrategySummary], part: str) -> Markup:
    """Mean tokens or FLOPs per problem as stacked bars by purpose, one for each strategy; `part` is
    "tokens" or "flops"."""
    width, left, right, row, top, bottom = 540, 118, 64, 32, 8, 46
    totals = [sum(getattr(each, part).values()) for each in summaries]
    ticks = svg.nice_ticks(0, max(max(totals), 1), num_wanted=4)
    height = top + row * len(summaries) + bottom
    scale = (width - left - right) / ticks[-1]
    parts = []
    for tick in ticks:
        at = left + tick * scale
        parts.append(svg.line(at, top, at, height - bottom, class_="grid"))
        parts.append(svg.text(quantity(tick), at, height - bottom + 18, "middle", class_="tick"))
    for number, (summary, total) in enumerate(zip(summaries, totals, strict=True)):
        at, y = float(left), top + row * number + 5
        name = summary.strategy
        parts.append(svg.text(name, left - 10, y + 15, "end", class_="series"))
        for purpose in PURPOSES:
            amount = getattr(summary, part)[purpose]
            if amount:
                share = f"{100 * amount / total:.1f} %"
                title = svg.element("title", f"{name}, {purpose}: {quantity(amount)} ({share})")
                bar = svg.element(
                    "rect", title, x=at, y=y, width=amount * scale, height=row - 10, class_=f"bar p-{purpose}"
                )
                parts.append(bar)
                at += amount * scale
        parts.append(svg.text(quantity(total), at + 7, y + 15, class_="tick value"))
    parts.append(svg.line(left, top, left, height - bottom, class_="axis"))
    label = f"{_UNITS[part]} per problem"
    parts.append(svg.text(label, (left + width - right) / 2, height - 6, "middle", class_="label"))
    return svg.image(parts, (width, height), f"{label}, by strategy and purpose", class_="chart")


_UNITS = {"tokens": "tokens", "flops": "FLOPs"}


def interval_bar(summary: StrategySummary, highest: float) -> Markup:
    """An accuracy and its interval on a scale from 0 to `highest` (0..1), for a row of the headline table."""
    width, height = 180, 18
    scale = (width - 12) / highest
    parts = [svg.line(6, 9, width - 6, 9, class_="track")]
    if summary.accuracy is not None:
        index = strategy_index(summary.strategy)
        interval = svg.line(6 + summary.low * scale, 9, 6 + summary.high * scale, 9, class_="span")
        mark = marker(index, 6 + summary.accuracy * scale, 9)
        parts.append(svg.group([interval, mark], class_=f"s{index}"))
    return svg.image(parts, (width, height), "accuracy with its 95 % interval", class_="spark")
