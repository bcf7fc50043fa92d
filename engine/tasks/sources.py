"""Reads rows from a JSONL or Parquet file, a folder of such files, or a data set on the Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from engine.errors import UserError

_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.-]+))?")  # owner/name or owner/name:configuration
_SUFFIXES = (".jsonl", ".parquet")
_MAX_PROBLEM, _MAX_RESULT = 32 << 20, 1 << 30  # bytes of a line; a result row may have a thousand long completions


def read_rows(
    source: str | os.PathLike[str], split: str | None = None, *, what: str = "problems"
) -> Iterator[tuple[str, object]]:
    """Yields (origin, row) pairs: an origin such as "problems.jsonl, line 3", and an unchecked JSON value.

    A local path is tried first: a file with one JSON object per line (blank lines are skipped), a `.parquet`
    file, or a folder of such files, of which those whose names start with `split` are read. Any other
    `owner/name`, optionally with `:configuration`, is a data set on the Hub, of which `split` is read. Raises
    UserError that says what cannot be read, and where; it calls the rows `what`.
    """
    path = _local(source)
    if path.is_dir():
        for file in _files(path, split):
            yield from read_rows(file, what=what)
    elif path.suffix == ".parquet" and path.exists():
        yield from _parquet(path, what)
    elif path.exists() or not is_hub_name(os.fspath(source)):
        for number, line in _lines(source, what):
            origin = f"{os.fspath(source)}, line {number}"
            try:
                yield origin, parse_line(line)
            except ValueError as error:
                raise UserError(f"{origin}: {error}") from None
    else:
        yield from _hub(os.fspath(source), split or "test")


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form of a data set on the Hub, `owner/name`, and not of a file that can be read."""
    return _HUB_NAME.fullmatch(source) is not None and not source.endswith((*_SUFFIXES, ".json"))


def has_splits(source: str) -> bool:
    """Whether the source, a folder or a data set on the Hub, has splits to choose from."""
    path = _local(source)
    return path.is_dir() or (not path.exists() and is_hub_name(source))


def parse_line(line: bytes) -> object:
    """The JSON value of a line. Raises UserError that shows the line if it is not valid JSON in UTF-8."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise UserError(f"not UTF-8 text: {shown(line)}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at column {error.colno}): {shown(line)}") from None
    except RecursionError:
        raise UserError(f"nested too deep: {shown(line)}") from None


def shown(value: object) -> str:
    """A value as shown in an error message: at most 60 printable characters."""
    if isinstance(value, bytes):
        value = value[:200].decode(errors="replace").strip()
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _local(source: str | os.PathLike[str]) -> Path:
    """The local path of a source; for owner/name:configuration this is owner/name/configuration."""
    name = os.fspath(source)
    match = _HUB_NAME.fullmatch(name)
    return Path(match[1], match[2]) if match and match[2] and not Path(name).exists() else Path(name)


def _lines(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 1, line) for all lines that are not blank. None is read on beyond what it may hold."""
    most = _MAX_RESULT if what == "results" else _MAX_PROBLEM
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(most + 1), b""), 1):
                if len(line) > most:
                    raise UserError(f"{os.fspath(path)}, line {number} is longer than {most:,} bytes: {shown(line)}")
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"cannot read {what} from {os.fspath(path)}: {error.strerror}") from None


def _files(folder: Path, split: str | None) -> list[Path]:
    """The files of a split in the folder and its subfolders, sorted by path."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES]
    files = [path for path in files if path.name.startswith(split or "")]
    if not files:
        which = f"of split {split!r} " if split else ""
        raise UserError(f"no .jsonl or .parquet file {which}in {str(folder)!r}")
    return files


def _parquet(path: Path, what: str) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"reading {str(path)!r} needs pyarrow: pip install 'ttc-engine[data]'") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"cannot read {what} from {path}: {str(error).splitlines()[0]}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _hub(source: str, split: str) -> Iterator[tuple[str, object]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"no local file {source!r}, and reading it from the Hub needs datasets: pip install 'ttc-engine[data]'"
        ) from None
    name, configuration = _HUB_NAME.fullmatch(source).groups()
    try:
        rows = load_dataset(name, configuration, split=split)
    except Exception as error:  # Hub, network and data sets raise errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        where = f"its split {split!r} from the Hub"
        raise UserError(f"no local file {source!r}, and cannot read {where}: {reason}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{source}, {split} row {number}", row
