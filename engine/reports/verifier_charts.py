"""The charts of a verifier's report: reliability diagrams with counts, and the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from engine.reports import svg
from engine.verifiers.figures import Bin

_SIDE, _LEFT, _TOP, _BOTTOM, _RIGHT = 320, 52, 14, 48, 16
_COUNTS = 70  # height of the bars below


def reliability_chart(bins: Sequence[Bin], y_label: str) -> Markup:
    """A reliability diagram: share of good ones against mean score per bin, with the diagonal, and counts below."""
    height = _TOP + _SIDE + 22 + _COUNTS + _BOTTOM
    parts = _square("mean score", y_label, x_label_at=height - 8)
    filled = [each for each in bins if each.count]
    path = " ".join(f"{_x(each.mean_score):.1f},{_y(each.share_good):.1f}" for each in filled)
    points = [svg.element("polyline", points=path, class_="curve")]
    base = height - _BOTTOM
    most = max(each.count for each in bins)
    for each in filled:
        told = (
            f"scores {each.low:.1f} to {each.high:.1f}: mean {each.mean_score:.3f}, "
            f"good {each.share_good:.3f}, {each.count:,} of them"
        )
        mark = svg.element("circle", cx=_x(each.mean_score), cy=_y(each.share_good), r=5, class_="marker")
        tall = _COUNTS * each.count / most
        left, right = _x(each.low) + 2, _x(each.high) - 2
        bar = svg.element(
            "rect", x=left, y=base - tall, width=right - left, height=tall, fill="currentColor", opacity=0.35
        )
        points.append(svg.group([svg.element("title", told), mark, bar]))
    parts.append(svg.group(points, class_="s1"))
    parts.append(svg.line(_LEFT, base, _LEFT + _SIDE, base, class_="axis"))
    parts.append(svg.text(f"{most:,}", _LEFT - 8, base - _COUNTS + 4, "end", class_="tick"))
    parts.append(svg.text("0", _LEFT - 8, base + 4, "end", class_="tick"))
    for tick in range(0, 11, 2):
        parts.append(svg.text(f"{tick / 10:g}", _x(tick / 10), base + 18, "middle", class_="tick"))
    size = (_LEFT + _SIDE + _RIGHT, height)
    return svg.image(parts, size, f"{y_label} against mean score, and how many", class_="chart")


def roc_chart(points: Sequence[tuple[float, float]], num_shown: int = 400) -> Markup:
    """The ROC curve: share of good ones that pass against share of bad ones; at most about `num_shown` points."""
    every = max(1, -(-len(points) // num_shown))
    shown = [*points[:-1:every], points[-1]]
    path = " ".join(f"{_x(bad):.1f},{_y(good):.1f}" for bad, good in shown)
    height = _TOP + _SIDE + _BOTTOM
    parts = _square("wrong ones passed", "right ones passed", x_label_at=height - 8)
    for tick in range(0, 11, 2):
        parts.append(svg.text(f"{tick / 10:g}", _x(tick / 10), _TOP + _SIDE + 18, "middle", class_="tick"))
    parts.append(svg.group([svg.element("polyline", points=path, class_="curve")], class_="s1"))
    return svg.image(parts, (_LEFT + _SIDE + _RIGHT, height), "ROC curve", class_="chart")


def _square(x_label: str, y_label: str, *, x_label_at: float) -> list[Markup]:
    """Grid, diagonal and labels of a chart whose axes both range from 0 to 1."""
    parts = []
    for tick in range(0, 11, 2):
        level = _y(tick / 10)
        parts.append(svg.line(_LEFT, level, _LEFT + _SIDE, level, class_="grid"))
        parts.append(svg.text(f"{tick / 10:g}", _LEFT - 8, level + 4, "end", class_="tick"))
    parts.append(svg.group([svg.line(_x(0), _y(0), _x(1), _y(1), class_="level")], class_="s0"))
    parts.append(svg.text(x_label, _LEFT + _SIDE / 2, x_label_at, "middle", class_="label"))
    turned = f"translate(13 {_TOP + _SIDE / 2:.0f}) rotate(-90)"
    parts.append(svg.text(y_label, 0, 0, "middle", class_="label", transform=turned))
    return parts


def _x(share: float) -> float:
    return _LEFT + share * _SIDE


def _y(share: float) -> float:
    return _TOP + (1 - share) * _SIDE
