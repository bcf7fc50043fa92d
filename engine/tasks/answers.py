"""Final answers: extracts them from completions, and normalises them for comparison.

Everything here takes time linear in the text, because a model may write anything.
"""

from __future__ import annotations

import re
from decimal import Decimal

# Digits with or without thousands separators, a sign and a dollar sign before them, no unit after.
_NUMBER = re.compile(r"([-+]?)\$?([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?", re.ASCII)
_NUMBER_IN_TEXT = re.compile(r"(?:(?<![\d)\w])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+", re.ASCII)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_STATED = re.compile(r"answer is:?[ \t]*([^\n]*)", re.IGNORECASE)
_BRACES = re.compile(r"\\boxed\s*\{|\\fbox\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+([^\s{}$]+)")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_WRITTEN_ALIKE = (
    (re.compile(r"\\ "), " "),
    (re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,;:]|\^\\circ(?![a-zA-Z])|\^\{\\circ\}"), ""),
    (re.compile(r"(?<!\d)\s+|\s+(?!\d)"), ""),  # 1 1/2 is not 11/2
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\\$"), "$"),
)
_MAX_WRAPPERS = 8  # nested
_MAX_FRACTION = 60  # decimals that are compared
_MAX_DIGITS = 300  # longer numbers are not compared by value
_ROUNDING = Decimal("1e-5")  # math-verify counts six decimals


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` whose braces balance, nested ones included, or None."""
    opened: list[int | None] = []  # where the content starts, for a box; None for any other brace
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match[0]
        if token[-1] == "{" and (token == "{" or len(token) > 2):
            opened.append(match.end() if len(token) > 2 else None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, match.start())
    if best is not None:
        return text[best[0] : best[1]]
    bare = _BARE_BOX.findall(text)
    return bare[-1] if bare else None


def extract_number(completion: str) -> str | None:
    """The final number of a solution: after the last `####`, else in the last box, else the text's last number."""
    hashes = _HASHES.findall(completion)
    for part in (hashes[-1] if hashes else None, boxed(completion)):
        if part is not None:
            key = answer_key(part)
            numbers = _NUMBER_IN_TEXT.findall(key.rpartition("=")[2])
            return plain_number(key) or (plain_number(numbers[0]) if numbers else None)
    numbers = _NUMBER_IN_TEXT.findall(completion)
    return plain_number(numbers[-1]) if numbers else None


def extract_expression(completion: str) -> str | None:
    r"""The content of the last `\boxed{…}`, else the text after the last `####` or "answer is"; else None."""
    content = boxed(completion)
    for pattern in (_HASHES, _STATED):
        if content is None and (found := pattern.findall(completion)):
            content = found[-1].partition(" I hope it is")[0]
    return (strip_wrappers(content) or None) if content is not None else None


def strip_wrappers(answer: str) -> str:
    r"""The answer without surrounding blanks, `$…$`, `\(…\)`, `\[…\]`, or a final full stop."""
    answer = answer.strip()
    for _ in range(_MAX_WRAPPERS):
        before = answer
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1].rstrip()
        for opening, closing in _WRAPPERS:
            inner = answer[len(opening) : len(answer) - len(closing)]
            is_whole = answer.startswith(opening) and answer.endswith(closing) and not answer.endswith(r"\$")
            if is_whole and inner and "$" not in inner.replace(r"\$", ""):
                answer = inner.strip()
                break
        if answer == before:
            break
    return answer


def answer_key(answer: str) -> str:
    r"""A normal form: answers with equal keys are equal, and all spellings of a plain number have one key.

    It ignores spacing, `\left`, `\dfrac`, degree signs and a `\text{…}` around the whole answer.
    """
    key = strip_wrappers(answer)
    for pattern, by in _WRITTEN_ALIKE:
        key = pattern.sub(by, key)
    if key.startswith(r"\text{") and key.find("}") == len(key) - 1:
        key = key[len(r"\text{") : -1]
    return plain_number(key) or key


def plain_number(text: str) -> str | None:
    """A plain number in normal form, `-1234.5` for `-$01,234.50`; None for any other text."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not (match[3] or match[4]) or (match[1] and match[2]):
        return None
    whole = match[3].replace(",", "").lstrip("0") or "0"
    fraction = (match[4] or "")[:_MAX_FRACTION].rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if "-" in (match[1], match[2]) and number != "0" else number


def are_plainly_different(first: str, second: str) -> bool:
    """Whether two keys are plain numbers that differ by more than rounding."""
    numbers = plain_number(first), plain_number(second)
    if None in numbers or first == second:
        return False
    if max(map(len, numbers)) > _MAX_DIGITS or not any("." in number for number in numbers):
        return True  # not the same digits
    return abs(Decimal(numbers[0]) - Decimal(numbers[1])) > _ROUNDING
