"""Numbers as users give them: one rule for all counts, limits and seeds.

A whole number is any integer, numpy's too. A bool and a float are none, even 4.0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real

from engine.errors import UserError

_MAX_DIGITS = 40  # of a whole number that is shown in a message
_MAX_SHOWN = 80  # characters of any other value


def check_count(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """The value as an int. Raises UserError, with the name, for what is no whole number or is out of range."""
    number = _whole(name, value)
    if number < least:
        raise UserError(f"{name} must be at least {least}, got {shown(number)}")
    if most is not None and number > most:
        raise UserError(f"{name} must be at most {most}, got {shown(number)}")
    return number


def settle_count(owner: object, name: str, least: int = 1, most: int | None = None, *, label: str = "") -> None:
    """Checks a count among a frozen dataclass's fields, and has the field hold it as an int. `label` is for errors."""
    object.__setattr__(owner, name, check_count(label or name, getattr(owner, name), least, most))


def check_seed(value: object) -> int:
    """A seed as an int, of 64 bits with its sign. Raises UserError for anything else."""
    return check_count("seed", value, -(1 << 63), (1 << 63) - 1)


def check_real(name: str, value: object) -> float:
    """The value as a float, infinite where it is beyond floats. Raises UserError for what is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"{name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def are_weights(values: Sequence[float]) -> bool:
    """Whether something can be drawn by them: finite ones of at least 0, whose sum is over 0 and finite too."""
    return all(value >= 0 for value in values) and 0 < sum(values) < math.inf


def shown(value: object) -> str:
    """A value for a message, cut where it is long. Python refuses to write down thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 3 * _MAX_DIGITS:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:  # such digits in a list, or a user's own class
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _whole(name: str, value: object) -> int:
    if type(value) is int:  # the fast way
        return value
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise UserError(f"{name} must be a whole number, got {shown(value)}")
