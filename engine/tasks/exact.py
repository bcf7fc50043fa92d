"""Exact values of numeric answers: fractions, mixed and repeating numbers, powers, factorials, bases.

A recursive-descent reader of a small grammar, bounded in length, depth and the size of every number, so that it may
read what a model wrote without a process of its own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from engine.tasks.notation import normalise

_MAX_CHARACTERS = 400
_MAX_DEPTH = 20
_MAX_BITS = 1 << 15  # of a numerator or denominator
_MAX_FACTORIAL = 2000
_NUMBER = re.compile(
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?![\d])|\d*)(?:\.(?P<part>\d*)(?:\\overline\{?(?P<repeated>\d{1,20})\}?)?)?",
    re.ASCII,
)
_BASE = re.compile(r"([0-9A-Fa-f]{1,60})_\{?(\d{1,2})\}?", re.ASCII)
_TOKENS = re.compile(
    r"\s*(?:(?P<number>\d[\d,]*(?:\.\d*)?(?:\\overline\{?\d{1,20}\}?)?|\.\d+)"
    r"|(?P<frac>\\[dt]?frac)|(?P<sign>\\times|\\cdot|\\div|\\%|\\left|\\right|[-+*/^!%(){}]))",
    re.ASCII,
)
_TIME = re.compile(r"\d{1,9}(?::\d{1,9})+", re.ASCII)
# What makes of a number something else: a relation, a residue class, a bound, a list. Parsers pass over some of these.
_NO_NUMBER = re.compile(
    r"[<>]|\\(?:ne|neq|le|leq|ge|geq|lt|gt|equiv|pmod|bmod|mod)(?![a-zA-Z])|\bmod\b"
    r"|\b(?:or|and) (?:more|less|fewer|above|below|over|under)\b|\bat (?:least|most)\b|\b(?:more|less) than\b"
    r"|\d\s*[,;]\s*-?\d(?!\d\d(?!\d))",
    re.ASCII,
)
_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True)
class Exact:
    """A value that is known exactly."""

    value: Fraction
    is_decimal: bool = False  # written with a decimal point, so perhaps rounded
    is_percent: bool = False
    base: int | None = None  # where one was written


class _NotExact(Exception):
    """The text is not of the grammar, or too large."""


def read_exact(text: str) -> Exact | None:
    """The exact value of a whole text, or None where it is none, or too large to be worth it."""
    text = normalise(text).strip().strip("$").strip()
    return None if not text or len(text) > _MAX_CHARACTERS else _read(text)


@lru_cache(maxsize=4096)  # a vote compares each answer with all others
def _read(text: str) -> Exact | None:
    if (based := _BASE.fullmatch(text.replace(" ", ""))) is not None:
        base = int(based[2])
        if 2 <= base <= 36 and all(int(digit, 36) < base for digit in based[1]):
            return Exact(Fraction(int(based[1], base)), base=base)
        return None
    try:
        return _Reader(text).read()
    except (_NotExact, ZeroDivisionError):
        return None


def are_equal(first: str, second: str) -> bool | None:
    """Whether two answers are equal, where both are exact; None where one of them is not, and may be a number.

    A decimal may be the rounding of the other value to six places or more. A percentage is equal to its number and to
    a hundredth of it. Numbers in two bases are equal if both base and value are; where one names no base its digits
    are compared.
    """
    if _TIME.fullmatch(first.strip()) and _TIME.fullmatch(second.strip()):
        return list(map(int, first.split(":"))) == list(map(int, second.split(":")))
    one, two = read_exact(first), read_exact(second)
    if one is None or two is None:
        is_half_exact = (one is None) != (two is None)
        other = normalise(second if two is None else first)
        return False if is_half_exact and _NO_NUMBER.search(other) else None
    if one.base is not None and two.base is not None:
        return (one.value, one.base) == (two.value, two.base)
    if one.base is not None or two.base is not None:
        return _digits(first) == _digits(second)
    is_rounded = one.is_decimal or two.is_decimal
    values = [(one.value, two.value)]
    values += [(one.value / 100, two.value)] if one.is_percent else []
    values += [(one.value, two.value / 100)] if two.is_percent else []
    return any(a == b or (is_rounded and _is_close(a, b)) for a, b in values)


def as_number(text: str) -> str | None:
    """The number that a text is, as a decimal where that ends and as `a/b` otherwise; None where it is none."""
    found = read_exact(text)
    if found is None or found.base is not None:
        return None
    value = found.value
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
        if places > 60:
            return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator * 10**places // value.denominator)).rjust(places + 1, "0")
    whole, part = (digits[:-places], digits[-places:]) if places else (digits, "")
    return ("-" if value < 0 else "") + whole + (f".{part}" if part else "")


def _digits(text: str) -> str:
    return text.partition("_")[0].strip().lower().lstrip("0")


def _is_close(first: Fraction, second: Fraction) -> bool:
    """To six decimals and six digits, the second so that two tiny numbers are not equal for being tiny."""
    apart = abs(first - second)
    return apart <= _TOLERANCE and apart <= 2 * _TOLERANCE * max(abs(first), abs(second))


class _Reader:
    """Reads `expression := term (+|- term)*`, `term := factor (*|/ factor)*`, `factor := [-] base [!] [^ factor]`."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            found = _TOKENS.match(text, at)
            if found is None or found.end() == at:
                raise _NotExact
            kind = found.lastgroup
            if found[kind] not in ("\\left", "\\right"):
                self.tokens.append((kind, found[kind]))
            at = found.end()
        self.at = self.depth = 0
        self.is_decimal = self.is_percent = False

    def read(self) -> Exact:
        value = self.expression()
        if self.peek() in ("%", "\\%"):
            self.at += 1
            self.is_percent = True
        if self.at != len(self.tokens):
            raise _NotExact
        return Exact(value, self.is_decimal, self.is_percent)

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def peek_kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def expression(self) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NotExact
        value = self.term()
        while self.peek() in ("+", "-"):
            sign = self.next()
            other = self.term()
            value = _bounded(value + other if sign == "+" else value - other)
        self.depth -= 1
        return value

    def term(self) -> Fraction:
        value = self.factor()
        while (sign := self.peek()) in ("*", "/", "\\times", "\\cdot", "\\div", "("):
            if sign == "(":  # a product without a sign
                value = _bounded(value * self.factor())
                continue
            self.at += 1
            other = self.factor()
            value = _bounded(value / other if sign in ("/", "\\div") else value * other)
        return value

    def factor(self) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NotExact
        if self.peek() in ("+", "-"):
            sign = self.next()
            value = self.factor()
            self.depth -= 1
            return -value if sign == "-" else value
        value = self.base()
        if self.peek() == "!":
            self.at += 1
            value = _factorial(value)
        if self.peek() == "^":
            self.at += 1
            value = _power(value, self.group() if self.peek() == "{" else self.factor())
        self.depth -= 1
        return value

    def base(self) -> Fraction:
        kind, token = self.peek_kind(), self.peek()
        if kind == "number":
            self.at += 1
            return self.mixed(self.number(token))
        if kind == "frac":
            return self.fraction()
        if token in ("(", "{"):
            return self.group()
        raise _NotExact

    def mixed(self, whole: Fraction) -> Fraction:
        """A whole number before a proper fraction: `3\\frac{1}{2}`, `11 5/6`."""
        if self.peek_kind() == "frac" and whole.denominator == 1:
            return whole + self.fraction()
        ahead = [token for _, token in self.tokens[self.at : self.at + 3]]
        is_mixed = len(ahead) == 3 and ahead[1] == "/" and self.peek_kind() == "number" and ahead[2].isdecimal()
        if is_mixed and ahead[0].isdecimal() and whole.denominator == 1:
            self.at += 3
            return whole + Fraction(int(ahead[0]), int(ahead[2]))
        if self.peek_kind() == "number":
            raise _NotExact
        return whole

    def fraction(self) -> Fraction:
        self.at += 1
        return _bounded(self.part() / self.part())

    def part(self) -> Fraction:
        """A numerator or denominator: a group, or a single digit as LaTeX reads it."""
        if self.peek() == "{":
            return self.group()
        if self.peek_kind() != "number" or not self.peek().isdecimal():
            raise _NotExact
        token = self.next()
        if len(token) > 1:
            self.at -= 1
            self.tokens[self.at] = ("number", token[1:])
        return Fraction(int(token[0]))

    def group(self) -> Fraction:
        closing = {"(": ")", "{": "}"}.get(self.next())
        value = self.expression()
        if closing is None or self.next() != closing:
            raise _NotExact
        return value

    def number(self, token: str) -> Fraction:
        found = _NUMBER.fullmatch(token)
        if found is None:
            raise _NotExact
        self.is_decimal |= "." in token and found["repeated"] is None
        part = found["part"] or ""
        value = Fraction(int((found["whole"] or "0").replace(",", ""))) + Fraction(int(part or "0"), 10 ** len(part))
        if found["repeated"]:
            value += Fraction(int(found["repeated"]), 10 ** len(part) * (10 ** len(found["repeated"]) - 1))
        return _bounded(value)

    def next(self) -> str:
        if self.at >= len(self.tokens):
            raise _NotExact
        self.at += 1
        return self.tokens[self.at - 1][1]


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _NotExact
    return value


def _power(value: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > _MAX_BITS:
        raise _NotExact
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if bits * abs(exponent) > 4 * _MAX_BITS or (value == 0 and exponent <= 0):
        raise _NotExact
    return _bounded(value**exponent.numerator)


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= _MAX_FACTORIAL:
        raise _NotExact
    return _bounded(Fraction(math.factorial(value.numerator)))
