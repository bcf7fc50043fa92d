"""Numbers with commas between them, as options take them."""

from __future__ import annotations

from typing import TypeVar

from engine.errors import UserError

Number = TypeVar("Number", int, float)


def parse_numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """`[1, 4, 16]` from `1,4,16`. Raises UserError, with the option's name, for anything else."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{name} must be {whole} with commas between, got {text!r}") from None
