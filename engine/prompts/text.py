"""Texts that people write: read from files of any editor, and checked for what UTF-8 cannot hold."""

from __future__ import annotations

from pathlib import Path

from engine.errors import UserError


def read_text(path: Path) -> str:
    r"""A file in UTF-8, without a byte order mark; `\n` alone ends its lines. Raises UserError for anything else."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None


def check_encodable(text: str) -> str:
    """Returns `text`. Raises UserError for a lone surrogate, which JSON can contain but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise UserError(f"not valid Unicode: {around!a}") from None
    return text
