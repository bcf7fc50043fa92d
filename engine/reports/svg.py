"""Builds SVG: elements as escaped strings, and round numbers for axes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from markupsafe import Markup, escape

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """`element("text", "a < b", x=1, text_anchor="end")`: children are escaped unless they are Markup.

    A trailing underscore is dropped (`class_`), other underscores become hyphens, an attribute of None
    is left out, floats are rounded to two decimals.
    """
    parts = []
    for name, value in attributes.items():
        if value is not None:
            shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
            parts.append(Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), shown))
    inside = Markup("").join(escape(printable(child) if type(child) is str else child) for child in children)
    return Markup("<{}{}>{}</{}>").format(Markup(tag), Markup("").join(parts), inside, Markup(tag))


def group(children: Iterable[object], **attributes: object) -> Markup:
    return element("g", *children, **attributes)


def text(content: object, x: float, y: float, anchor: str = "start", **attributes: object) -> Markup:
    return element("text", str(content), x=x, y=y, text_anchor=anchor, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def image(
    children: Iterable[object],
    size: tuple[float, float],
    label: str,
    is_scaled: bool = True,
    **attributes: object,
) -> Markup:
    """An SVG image of `size` (width, height) in pixels, which may be scaled to fit; screen readers read `label`."""
    width, height = map(round, size)
    if not is_scaled:
        attributes |= {"width": width, "height": height}
    return element(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
        **attributes,
    )


def printable(content: str) -> str:
    """Replaces characters that XML forbids, and lone surrogates, which cannot be encoded."""
    return _UNPRINTABLE.sub("\ufffd", content)


def nice_ticks(low: float, high: float, num_wanted: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = max(high - low, 1e-12) / num_wanted
    power = 10.0 ** math.floor(math.log10(span))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]
