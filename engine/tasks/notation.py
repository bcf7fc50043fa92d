"""One spelling for what people and models write in many: signs, fractions, roots, units, thousands separators.

Everything here takes time linear in the text: what a model writes can be hostile.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate

_CHARACTERS = {
    **{chr(code + 0xFEE0): chr(code) for code in range(ord("!"), ord("~") + 1)},  # of full width: （1，2）
    **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011\u2012\u2013\u2014\u2015", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2007\u200a\u2005", " "),
    "\u200b": "",
    "\u2061": "",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": r"\div ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": "",
    "…": r"\dots ",
}
_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
}  # fmt: skip
FRACTION_SIGNS = "".join(_FRACTIONS)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_TABLE = str.maketrans(
    {**_CHARACTERS, **{sign: rf"\frac{{{over}}}{{{under}}}" for sign, (over, under) in _FRACTIONS.items()}}
)
# What changes the look of an answer alone: blanks at its ends, and commands before or around all of it.
_BLANK = r"(?:[\s~]|\\(?:[ ,;:!>\\]|q?quad(?![a-zA-Z])|text\s?\{[\s.]*\}))"
_BLANKS = re.compile(rf"{_BLANK}++(?:\\\Z)?|\\\Z")  # a whole run at once: its parts would take quadratic time
_STYLE = re.compile(
    r"^\\(?:(?:displaystyle|textstyle|tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it|boldmath)(?![a-zA-Z])"
    r"|color\s*\{[^{}]*\})\s*"
)
_AROUND = re.compile(
    r"^(?:\\(?:(?:math|text)(?:bf|rm|it|sf|tt|normal)|mathbf|boldsymbol|bm|emph|underline|text|mbox|boxed|fbox"
    r"|textcolor\s*\{[^{}]*\})\s*)?\{"
)
_WORD = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{2,}")
_LABEL = re.compile(r"^\\(?:text|mathrm|mbox)\s?\{(?:[^{}]*?(?::|\bis)\s*\}\s*|[^{}]*\}\s*[=:]\s*)(?=\S)")
_UNITS = {
    "mm": "millimeters?|mm", "cm": "centimeters?|cm", "km": "kilometers?|km", "m": "meters?|m", "in": "inch(?:es)?",
    "ft": "feet|foot|ft", "yd": "yards?|yd", "mi": "miles?|mi", "mg": "milligrams?|mg", "kg": "kilograms?|kg",
    "g": "grams?|g", "lb": "pounds?|lbs?", "oz": "ounces?|oz", "ton": "tons?", "ml": "milliliters?|ml|mL",
    "L": "liters?|L", "gal": "gallons?", "s": "seconds?|sec|s", "min": "minutes?|mins?", "h": "hours?|hrs?|h",
    "day": "days?", "week": "weeks?", "month": "months?", "year": "years?|yrs?", "mi/h": "mph", "dollar": "dollars?",
    "cent": "cents?", "euro": "euros?", "degree": "degrees?", "unit": "units?", "people": "people",
    "student": "students?", "apple": "apples?", "point": "points?",
}  # fmt: skip
_ANY_UNIT = "|".join(_UNITS.values())
_COUNTED = {"unit", "people", "student", "apple", "point", "degree"}  # what a problem counts has many names
# Not s and h, unless behind another unit; and no letter alone behind \pi, where it is a variable.
_UNIT = re.compile(
    r"(?:(?<=[\d}])|(?<=\\pi)(?=[\s\\])(?!(?:\s|\\[ ,;:!]|~)*+[a-zA-Z](?![a-zA-Z])))"
    r"\s*+(?:\\[ ,;:!]|~)?\s*+"
    r"(?:\\text\s*\{\s*)?(?:square |cubic |sq\.? |cu\.? )?"
    rf"(?<![A-Za-z])(?![sh](?![A-Za-z]))({_ANY_UNIT})(?:\s?(?:/|\bper\b)\s?({_ANY_UNIT}))?"
    r"\.?\s*\}?(?:\^\{?([23])\}?)?\s*$"
)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}  # powers of ten
_SCALE = "|".join(SCALES)
# In French notation an open end's bracket looks away: ]0,1[.
_TURNED = re.compile(r"^\s*([\[\]])([^\[\](){}]*[,;][^\[\](){}]*)([\[\]])\s*$")


def _as_scaled(found: re.Match[str]) -> str:
    return rf"\times 10^{{{SCALES[found[1] or found[2]]}}}"


def _as_power(found: re.Match[str]) -> str:
    return f"^{{{found[1]}}}" if found[1] else "^"


def _as_turned(found: re.Match[str]) -> str:
    return f"{'[' if found[1] == '[' else '('}{found[2]}{']' if found[3] == ']' else ')'}"


_SPELLINGS = (
    (re.compile(rf"(?<=\d)\s*+(?:\\text\s?\{{\s*({_SCALE})\s*\}}|({_SCALE})(?![A-Za-z]))"), _as_scaled),
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"), lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}"),
    (re.compile(r"\{([-,])\}"), r"\1"),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\[lc]dots(?![a-zA-Z])"), r"\\dots "),
    (re.compile(r"∛\s*(\d+|[A-Za-z])"), r"\\sqrt[3]{\1}"),
    (re.compile(r"(?<=\d),\\[!,;:](?=\d)"), ","),
    (re.compile(r"\\(?:mathrm|mathbf|mathit|operatorname)\{([A-Za-z])\}"), r"\1"),
    (re.compile(r"\\displaystyle(?![a-zA-Z])|\\[!,;:](?=\d)"), ""),
    (re.compile(r"√\s*\(([^()]*)\)|\\?\bsqrt\s*\(([^()]*)\)"), lambda found: rf"\sqrt{{{found[1] or found[2] or ''}}}"),
    (re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])(pi|infty|infinity|inf)(?![A-Za-z])"), lambda found: _WORDS[found[1]]),
    (re.compile(r"(?:(?<=[\d)}])|(?<=(?<![A-Za-z*])[A-Za-z]))\*\*(?:(-?\d+)|(?=[({A-Za-z]))"), _as_power),
    (re.compile(r"(?<![A-Za-z\\])(ln|log|sin|cos|tan|cot|sec|csc|exp)(?=\s*[(_\d])"), r"\\\1"),
    (re.compile(r"(?<=[\d)}])\s*\*\s*(?=[\d({\\A-Za-z])"), r"\\cdot "),
    (re.compile(r"(?<![\w.,])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,4})(?![\w.])"), r"\1\\times 10^{\2}"),
    (re.compile(r"(\d)\.0+(?!\d)"), r"\1"),
    (re.compile(r"(?<==)\s*\d{1,3}(?:,\d{3})+(?=(?:\.\d+)?$)"), lambda found: found[0].replace(",", "")),
    (re.compile(r"(?<![\d.])1(?=i(?![a-zA-Z]))"), ""),
    (_TURNED, _as_turned),
)
_WORDS = {"pi": r"\pi ", "infty": r"\infty ", "infinity": r"\infty ", "inf": r"\infty "}
MAX_CHARACTERS = 2000  # longer texts are no answers in notation, and stay as they are
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d])(?!,\d)")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,/])(?! ?/)")


def unstyled(text: str) -> str:
    r"""The text without what only changes its look: blanks at its ends, `\large`, `\mathbf{…}` around all of it.

    A label such as `\text{Area} =` goes too. Words keep a `\text{…}`: without it they would be products of variables.
    """
    if len(text) > MAX_CHARACTERS:
        return text.strip()
    text = _BLANKS.sub(lambda run: "" if run.start() == 0 or run.end() == len(text) else run[0], text)
    text = _LABEL.sub("", _STYLE.sub("", text))
    found = _AROUND.match(text)
    if found is None or not _closes_at_end(text, found.end()):
        return text
    inner = text[found.end() : -1]
    if not inner.strip():
        return text
    is_text = found[0] != "{" and _WORD.search(inner) is not None and re.search(r"[=\\^_+\d]", inner) is None
    return rf"\text{{{inner.strip()}}}" if is_text else inner


def _closes_at_end(text: str, start: int) -> bool:
    """Whether the brace before `start` is closed by the last character."""
    bare = text.replace(r"\\", "xx").replace(r"\{", "xx").replace(r"\}", "xx")
    depths = accumulate((character == "{") - (character == "}") for character in bare[start:])
    return next((start + index for index, depth in enumerate(depths) if depth < 0), -1) == len(text) - 1


def normalise(text: str) -> str:
    """The text in LaTeX's common spelling: `½` becomes `\\frac{1}{2}`, `√2` `\\sqrt{2}`, `1e5` `1\\times 10^{5}`.

    Units after a number at the end are left out, and thousands separators inside tuples and lists.
    """
    return text if len(text) > MAX_CHARACTERS else _normalised(text)


# A letter that stands alone: a variable, unless it is a unit at the end.
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])")


def _unit_of(text: str) -> re.Match[str] | None:
    """The unit at the end of a number; behind an expression in variables a letter is another variable."""
    found = _UNIT.search(text)
    if found is None or _VARIABLE.search(text[: found.start()].rpartition("=")[2]):
        return None
    return found


def without_measure(text: str) -> tuple[str, str]:
    """The text without its unit, and the unit, where one is measured in it: `m/s` of `5 meters per second`.

    Any other text, and one that counts something, is left as it is, and its unit is empty. So is the power of a unit
    that is not per another: `5 cm` often stands for an area.
    """
    found = None if len(text) > MAX_CHARACTERS else _unit_of(text)
    if found is None:
        return text, ""
    *units, power = found.groups()
    names = (next(name for name, spelt in _UNITS.items() if re.fullmatch(spelt, unit)) for unit in units if unit)
    joined = "/".join(names)
    if "/" in joined:
        return text[: found.start()], joined + (f"^{power}" if power else "")
    return (text, "") if joined in _COUNTED else (text[: found.start()], joined)


@lru_cache(maxsize=4096)  # a vote compares each answer with all others
def _normalised(text: str) -> str:
    text = text.translate(_TABLE)
    for pattern, by in _SPELLINGS:
        text = pattern.sub(by, text)
    if (unit := _unit_of(text)) is not None:
        text = text[: unit.start()]
    text = _SPACED.sub(lambda found: found[0].replace(" ", ""), text)
    if ", " in text:  # commas that separate have a blank behind them: those without one group digits
        text = _GROUPED.sub(lambda found: found[0].replace(",", ""), text)
    return text.strip()
