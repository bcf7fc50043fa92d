"""Colours of a bar chart: what the legend says of a bar is what it has."""

from __future__ import annotations

import re

from engine.reports.bars import NUM_SHADES, Bar, BarGroup, bar_chart


def colours(*pairs: tuple[str, str]) -> tuple[list[tuple[int, int]], str]:
    """(colour, shade) of the bars of these series and details, and the chart."""
    bars = tuple(Bar(name, detail, 0.5, 0.4, 0.6) for name, detail in pairs)
    chart = str(bar_chart([BarGroup("bin 1", bars)], "chart", "difficulty"))
    found = re.findall(r'<g class="s(\d)"><title>.*?class="column s-(\d)"', chart, re.DOTALL)
    return [(int(colour), int(shade)) for colour, shade in found], chart


def test_one_shade_per_budget_in_all_series():
    found, chart = colours(("majority", "1"), ("majority", "4"), ("beam", "4"), ("beam", "16"))
    last = NUM_SHADES - 1
    assert found == [(1, last - 2), (1, last - 1), (2, last - 1), (2, last)]
    assert "from light to dark: 1, 4, 16" in chart


def test_a_series_of_one_bar_has_its_full_colour():
    found, chart = colours(("14x model", "greedy"), ("search", "low"), ("search", "high"))
    last = NUM_SHADES - 1
    assert found == [(1, last), (2, last - 1), (2, last)]
    assert "from light to dark: low, high" in chart
    assert colours(("majority", "4"))[0] == [(1, last)]
