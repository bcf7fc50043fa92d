"""A chart of grouped bars with intervals: accuracy by difficulty bin, strategy and budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from engine.reports import svg
from engine.reports.charts import NUM_COLOURS, accuracy_grid, accuracy_label

NUM_SHADES = 4  # the last is the full colour


@dataclass(frozen=True)
class Bar:
    """An accuracy as a bar with its interval."""

    name: str  # of its series, in the legend
    detail: str  # distinguishes it from other bars of its series, e.g. a budget
    accuracy: float  # 0..1
    low: float  # 95 % interval
    high: float


@dataclass(frozen=True)
class BarGroup:
    """Bars side by side, e.g. those of one difficulty bin."""

    name: str  # under its bars
    bars: tuple[Bar, ...]


def bar_chart(groups: Sequence[BarGroup], label: str, x_label: str) -> Markup:
    """A colour per series, at most seven, and a shade per detail, the last full; in order of first appearance."""
    width, height, left, right, top, bottom = 860, 360, 58, 12, 40, 58
    bars = [bar for group in groups for bar in group.bars]
    levels = svg.nice_ticks(0, min(100.0, max(5.0, 100 * max(bar.high for bar in bars))))
    names = list(dict.fromkeys(bar.name for bar in bars))
    assert len(names) < NUM_COLOURS, "a colour for every series"
    shades = _shades(bars)

    def y(accuracy: float) -> float:
        return top + (levels[-1] - 100 * accuracy) / levels[-1] * (height - top - bottom)

    parts = accuracy_grid(levels, y, left, width - right)
    room = (width - left - right) / len(groups)
    for number, group in enumerate(groups):
        num_gaps = len({bar.name for bar in group.bars}) - 1
        each = 0.84 * room / (len(group.bars) + 0.5 * num_gaps)
        at = left + number * room + 0.08 * room
        for previous, bar in zip((None, *group.bars), group.bars, strict=False):
            if previous is not None and previous.name != bar.name:
                at += each / 2
            shade = shades.get(bar.detail, NUM_SHADES - 1)
            parts.append(_bar(bar, at, each, y, names.index(bar.name) + 1, shade))
            at += each
        parts.append(svg.text(group.name, left + (number + 0.5) * room, height - bottom + 20, "middle", class_="tick"))
    parts.append(svg.line(left, height - bottom, width - right, height - bottom, class_="axis"))
    parts.append(svg.text(x_label, (left + width - right) / 2, height - 10, "middle", class_="label"))
    parts.append(accuracy_label((top + height - bottom) / 2))
    parts += _legend(names, list(shades), left)
    return svg.image(parts, (width, height), label, class_="chart")


def _shades(bars: Sequence[Bar]) -> dict[str, int]:
    """The shade of each detail; a series' only detail gets none (full colour) unless another series shares it."""
    of_series: dict[str, set[str]] = {}
    for bar in bars:
        of_series.setdefault(bar.name, set()).add(bar.detail)
    shared = [
        detail
        for detail in dict.fromkeys(bar.detail for bar in bars)
        if any(detail in own and len(own) > 1 for own in of_series.values())
        or sum(detail in own for own in of_series.values()) > 1
    ]
    return {detail: max(0, NUM_SHADES - len(shared) + index) for index, detail in enumerate(shared)}


def _bar(bar: Bar, x: float, width: float, y, colour: int, shade: int) -> Markup:
    size = max(1.0, width - 1.5)
    title = svg.element(
        "title",
        f"{bar.name}, {bar.detail}: {100 * bar.accuracy:.1f} % ({100 * bar.low:.1f} to {100 * bar.high:.1f})",
    )
    column = svg.element(
        "rect",
        x=x,
        y=float(y(bar.accuracy)),
        width=size,
        height=max(0.0, y(0) - y(bar.accuracy)),
        class_=f"column s-{shade}",
    )
    middle = x + size / 2
    whisker = svg.line(middle, float(y(bar.low)), middle, float(y(bar.high)), class_="whisker dark")
    return svg.group([title, column, whisker], class_=f"s{colour}")


def _legend(names: Sequence[str], details: Sequence[str], left: float) -> list[Markup]:
    """The names of the series in their colours, then the details from light to dark."""
    parts, at = [], float(left)
    for index, name in enumerate(names):
        square = svg.element("rect", x=at, y=8.0, width=12.0, height=12.0, class_="column")
        parts.append(svg.group([square, svg.text(name, at + 18, 18, class_="series")], class_=f"s{index + 1}"))
        at += 46 + 7.6 * len(name)
    if len(details) > 1:
        parts.append(svg.text("from light to dark: " + ", ".join(details), at, 18, class_="tick"))
    return parts
