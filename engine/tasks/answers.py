"""Final answers: extracts them from completions, and normalises them for comparison.

Everything here takes time linear in the text, because a model may write anything.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from engine.prompts.boxed import after_thoughts, last_box
from engine.tasks.exact import as_number
from engine.tasks.notation import FRACTION_SIGNS, MAX_CHARACTERS, SCALES, normalise, unstyled, without_measure

# Digits with or without thousands separators, a sign and a dollar sign before them, no unit after.
_NUMBER = re.compile(r"([-+]?)\$?([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?", re.ASCII)
# In a sentence: a fraction, a power or a time of day is read whole; before a minus nothing may be subtracted from.
_IN_TEXT = re.compile(
    r"(?:(?<![\d)\w])-)?\$?(?:"
    r"(?:\d+\s?)?\\[dt]?frac\s?(?:\{\d+\}|\d)\s?(?:\{\d+\}|\d)"
    r"|(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)\s*+\\(?:times|cdot)\s*+10\^(?:\{-?\d+\}|-?\d+)"
    r"|(?:\d+ )?\d+/\d+|\d+\^(?:\{-?\d+\}|-?\d+)|\d+(?::\d+)+"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?)|(?<!\d)\.\d+",
    re.ASCII,
)
_TO_LAST_DIGIT = re.compile(
    rf"(.*[\d{FRACTION_SIGNS}]\}}?)(?:\s*+(?:{'|'.join(SCALES)})(?![A-Za-z]))?", re.ASCII | re.DOTALL
)
_HASHES = re.compile(r"#{4,}+")
_STATED = re.compile(
    r"answer\s+is\b:?(?:\s++(?:therefore|thus|then|simply|just|exactly|about|approximately|equal to)\b)*+",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"\banswer\*{0,2}:", re.IGNORECASE)
_REMARK = re.compile(r"\s\([^()]*\)[\s.]*$")
_ANY_STATED = re.compile(rf"{_HASHES.pattern}|{_STATED.pattern}|{_LABELLED.pattern}", re.IGNORECASE)
# Behind `####`, unless it ends the text.
_HEADING = re.compile(r"[\s*:]*(?:[A-Za-z]{2,}|\d+[.):]\s+\S|\d+(?:st|nd|rd|th)\b)")
# It tells of an answer rather than what the answer is.
_COMMENT = re.compile(
    r"(?:not|right|wrong|correct|incorrect|clear|unclear|helpful|obvious|reasonable)\b", re.IGNORECASE
)
_MATHS = re.compile(r"[-$\\*(\d]")  # how a line begins that holds an answer alone
_BARE_BOX = re.compile(r"\\boxed\s++([^\s{}$]+)")
# A number with what may belong to it, up to the first word.
_NUMERIC = re.compile(
    r"[-+(]*(?:\\[dt]?frac|\d|\.\d)(?:[\d.,+*/^!%(){}-]|\\(?:[dt]?frac|times|cdot|div|overline|%)|\s(?=[\d*/+^\\-]))*",
    re.ASCII,
)
# It goes on, or began, in a way that is no number.
_JOINED = re.compile(r"\s*(?:[:^_=<>/*]|\\(?!text|mathrm|mbox|[,;! ])[a-zA-Z])")
_JOINED_BEFORE = re.compile(r"[:^_<>]\s*$")
_PROSE = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{[^{}]*\}|\*\*")
_WRAPPERS = (("**", "**"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_WRITTEN_ALIKE = (
    (re.compile(r"\\ "), " "),
    (re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,;:]|\^\\circ(?![a-zA-Z])|\^\{\\circ\}"), ""),
    (re.compile(r"(?<!\d)\s+|\s+(?!\d)"), ""),  # 1 1/2 is not 11/2
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\\$"), "$"),
)
# An answer that is set off from a sentence which ends behind it; and the end of one that is not.
_MARKED = re.compile(
    r"(?:(\*\*[^*\n]+\*\*|\$\$[^$\n]+\$\$|\$[^$\n]+\$|\\\(.+?\\\)|\\\[.+?\\\])|\*([^*\s][^*\n]*)\*|`([^`\n]+)`)"
    r"[.,;!:]*(?=\s*$|\s+(?:[A-Z∎]|because\b|since\b|as\b|where\b))"
)
_SENTENCE_END = re.compile(
    r"(?:[.!;,]|(?<!\s))\s++(?:I hope it is\b|because\b|since\b|∎)|,\s++(?:which|not|rather)\b|(?<=[\w})*])!\s*$"
    r"|(?<=\S)(?<!\bSt)(?<!\bMt)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)[.!]\s+(?=[A-Z∎])"
)
_MAX_STATEMENTS = 16  # that are looked at, from the last one back
_MAX_WRAPPERS = 8  # around one another
_MAX_FRACTION = 60  # decimals that count
_MAX_NUMBER = 400  # characters of an expression whose value is looked for
_MAX_BEFORE = 100  # characters before the digits of a number that may belong to it


def boxed(text: str) -> str | None:
    r"""What the last filled box of a text holds, or where none has braces the word after the last `\boxed`; or None."""
    if (content := last_box(text)) is not None:
        return content
    bare = _BARE_BOX.findall(text)
    return bare[-1] if bare else None


def extract_number(completion: str) -> str | None:
    """The final number of a worked answer, outside its thoughts: a decimal, or a fraction `a/b` that has none.

    It is looked for after the last `####` that is no heading, in the last box, after each "answer is" from the last
    one back, after an "answer:" of a number alone, and is else the last of the text. An expression counts as its
    value; what is no number, such as a time of day, is no answer.
    """
    completion = after_thoughts(completion)
    for part in (next(_statements(_HASHES, completion), None), boxed(completion)):
        if part is not None:
            return leading_number(part)
    stated = map(_answer_of, _statements(_STATED, completion))
    numbers = (leading_number(answer) for answer in stated if not _COMMENT.match(answer))
    alone = (_number_alone(rest) for rest in _statements(_LABELLED, completion))
    found = next((number for number in (*numbers, *alone) if number is not None), None)
    return found or _last_number(completion)


def _statements(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """What follows each match, the last one first, to the end of its line, or of the next one where that is set off.

    Without those that nothing follows, and without the headings behind `####`.
    """
    for found in reversed(deque(pattern.finditer(text), maxlen=_MAX_STATEMENTS)):
        rest, _, following = text[found.end() :].partition("\n")
        if not rest.strip(" \t\r*:"):
            rest, _, following = following.lstrip().partition("\n")
            rest = rest if _MATHS.match(rest) else ""
        if rest.strip() in ("$$", r"\["):  # display mathematics, on lines of its own
            rest, _, following = following.lstrip().partition("\n")
        is_heading = found[0][0] == "#" and _HEADING.match(rest) and following.strip()
        if rest.strip(" \t\r*:.,;!?") and not is_heading:
            yield rest.strip()


def _answer_of(rest: str) -> str:
    """The answer with which the rest of a sentence begins."""
    start = rest[:MAX_CHARACTERS]
    if (marked := _MARKED.match(start)) is not None:
        return next(filter(None, marked.groups()))
    answer, *others = _SENTENCE_END.split(start, maxsplit=1)
    return (answer if others else rest).replace("**", "").replace("`", "").strip()


def _number_alone(rest: str) -> str | None:
    """The number that is all of a line, but for a unit and a remark in brackets behind it."""
    text = strip_wrappers(normalise(strip_wrappers(_REMARK.sub("", _answer_of(rest)))))
    return plain_number(text) or as_number(text)


def _last_number(text: str) -> str | None:
    """The last number of a text, looked for around its last digit; None where it is part of something else."""
    found = _TO_LAST_DIGIT.match(text)
    if found is None:
        return None
    start = len(found[1].rstrip(f"0123456789,.}}{FRACTION_SIGNS}"))
    if len(found[1]) - start > MAX_CHARACTERS:
        return plain_number(found[1][start:])
    numbers = _IN_TEXT.findall(normalise(found[0][max(0, start - _MAX_BEFORE) :]))
    number = numbers[-1].replace("$", "") if numbers else ""
    return plain_number(number) or as_number(number)


def leading_number(part: str) -> str | None:
    """The number that a short text states: after its last `=`, before a unit or other words."""
    if len(part) > MAX_CHARACTERS:
        return _leading_of_long(part)
    text = strip_wrappers(normalise(strip_wrappers(part))).rpartition("=")[2].replace(r"\$", "").replace("$", "")
    text = _PROSE.sub(" ", text).strip()
    if (number := plain_number(text) or as_number(text)) is not None:
        return number
    found = _NUMERIC.search(text[:_MAX_NUMBER])
    if found is None or _JOINED.match(text[found.end() :]) or _JOINED_BEFORE.search(text[: found.start()]):
        return None
    expression = found[0].rstrip(" (+-*/^,.")
    return plain_number(expression) or as_number(expression)


def _leading_of_long(part: str) -> str | None:
    """As `leading_number`, of a text that is too long to be an expression: a plain number before its first word."""
    part = part.rpartition("=")[2]
    if (number := plain_number(part)) is not None:
        return number
    start = part.lstrip()[:MAX_CHARACTERS]
    word = start.split(maxsplit=1)[:1]
    return None if not word or len(word[0]) == MAX_CHARACTERS else leading_number(word[0])


def extract_expression(completion: str) -> str | None:
    r"""What the last filled `\boxed{…}` holds, else what the last `####`, "answer is" or "answer:" states; else None.

    A statement that says nothing, or only "not clear" and the like, gives way to one before it. Thoughts do not count
    (see `after_thoughts`).
    """
    completion = after_thoughts(completion)
    if (content := boxed(completion)) is not None:
        return strip_wrappers(content) or None
    stated = [strip_wrappers(_answer_of(rest)) for rest in _statements(_ANY_STATED, completion)]
    stated = [answer for answer in stated if answer]
    return next((answer for answer in stated if not _COMMENT.match(answer)), stated[0] if stated else None)


def strip_wrappers(answer: str) -> str:
    r"""The answer without `$…$`, `\(…\)`, `\[…\]`, a final full stop, and `\large` and the like (see `unstyled`)."""
    answer = answer.strip()
    for _ in range(_MAX_WRAPPERS):
        before = answer
        answer = unstyled(answer)
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

    It ignores spacing, `\left`, `\dfrac`, degree signs, a `\text{…}` around the whole answer, and units in which
    nothing is measured (see `without_measure`).
    """
    key = strip_wrappers(answer)
    _, unit = without_measure(key)
    if len(key) > MAX_CHARACTERS:  # no expression: equal to the same text alone
        return plain_number(key) or key
    key = normalise(key)
    for pattern, by in _WRITTEN_ALIKE:
        key = pattern.sub(by, key)
    if key.startswith(r"\text{") and key.find("}") == len(key) - 1:
        key = key[len(r"\text{") : -1]
    return (plain_number(key) or key) + (rf"\text{{{unit}}}" if unit else "")


def plain_number(text: str) -> str | None:
    """A plain number in normal form, `-1234.5` for `-$01,234.50`; None for any other text."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not (match[3] or match[4]) or (match[1] and match[2]):
        return None
    whole = match[3].replace(",", "").lstrip("0") or "0"
    fraction = (match[4] or "")[:_MAX_FRACTION].rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if "-" in (match[1], match[2]) and number != "0" else number
