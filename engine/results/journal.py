"""The journal: an append-only file, one line per finished problem, from which a killed run resumes.

The first line holds the run's configuration and its hash, every other line a finished row with its
position in the input. A line counts once its newline is on disk, so a run that is killed at any byte
loses at most the problem it was writing. The file and messages to users call it the run ledger.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engine.differences import difference
from engine.errors import UserError
from engine.files import naming, sync_folder, write_atomically
from engine.results.rows import Row, is_error_row, read_rows, row_line, stored_lines

_FORMAT = "ttc run ledger 1"
_HEADER = ("format", "config_hash", "config")  # of a whole run; that of a shard says more
_MARK = json.dumps({"format": _FORMAT})[:-1].encode()  # every journal starts with these bytes


def journal_path(out: str | os.PathLike[str]) -> Path:
    """The path of a results file's journal: `results.jsonl.ledger` for `results.jsonl`.

    It stands beside the file that a symbolic link leads to, so that two runs into one file share one lock.
    """
    return Path(f"{os.path.realpath(out) if os.path.islink(out) else os.fspath(out)}.ledger")


def open_run(
    out: str | os.PathLike[str], config: dict, *, overwrite: bool = False, part: Mapping[str, object] | None = None
) -> Journal:
    """Opens the journal of a results file.

    Raises UserError as Journal does, and for existing results without a journal, which cannot be resumed.
    """
    path = journal_path(out)
    if os.path.isfile(out) and not path.exists() and not overwrite:
        raise UserError(
            f"{os.fspath(out)} exists and no run ledger {path.name} stands beside it: "
            "choose another file or overwrite it"
        )
    return Journal(path, config, overwrite=overwrite, part=part)


def read_journal(path: str | os.PathLike[str], config: dict, num_total: int) -> tuple[dict[int, Row], float]:
    """The rows of the first `num_total` problems by position, and the seconds they took; none where there is no file.

    A run may be writing: its torn last line is left out. Raises UserError as Journal does.
    """
    if not os.path.isfile(path):
        return {}, 0.0
    journal = Journal(path, config, is_read_only=True)
    rows = {index: row for index, row in journal.done.items() if index < num_total}
    seconds = journal.seconds
    return rows, sum(seconds[index] for index in rows)


def seconds_by_strategy(results: Sequence[str]) -> dict[str, float]:
    """Wall-clock seconds by strategy, from the run ledgers beside files of results.

    A strategy of a file without a ledger is left out: its time is not known.
    """
    totals: dict[str, float] = {}
    unknown: set[str] = set()
    for path in results:
        try:
            lines = journal_path(path).read_bytes().split(b"\n")[1:-1]
        except OSError:
            unknown.update(row["strategy"] for row in read_rows(path))
            continue
        for line in lines:
            strategy, seconds = _timed(line, path)
            totals[strategy] = totals.get(strategy, 0.0) + seconds
    return {strategy: total for strategy, total in totals.items() if strategy not in unknown}


def _timed(line: bytes, results: str) -> tuple[str, float]:
    """Strategy and seconds of one row. Raises UserError for a line that is damaged."""
    try:
        entry = json.loads(line)
        return str(entry["row"]["strategy"]), float(entry["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{journal_path(results)} is damaged: {error}: {line[:60]!r}") from None


class JournalInUse(UserError):
    """Another process is writing to the journal."""


class Journal:
    """The finished rows of a run by their position in the input, each synced to disk when it is appended.

    `config` holds what the results depend on (strategy, budget, seed, checkpoints, problems ...) as
    JSON values; leave out what does not change a row. The file is created if needed and locked until
    `close`. With `is_read_only` it must exist, and is neither locked nor changed, so that the rows of a
    running search can be read. `part` is what a shard's journal says of itself, on which no row depends
    (`Shard.part`).

    Raises UserError for a file with another configuration (naming what differs), that is no journal, or
    that is damaged before its last line; JournalInUse for one that another process has open.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: dict,
        *,
        overwrite: bool = False,
        is_read_only: bool = False,
        part: Mapping[str, object] | None = None,
    ) -> None:
        assert not (overwrite and is_read_only)
        self.path = Path(path)
        self.config = json.loads(json.dumps(config, allow_nan=False))  # in the form in which it is read back
        self.part = dict(part or {})
        self._hash = _digest(json.dumps(self.config, sort_keys=True))
        self._done: dict[int, Row] = {}
        self._seconds: dict[int, float] = {}
        self._descriptor = -1
        if is_read_only:
            self._size = self._load()
            self.num_resumed = len(self._done)
            return
        self._descriptor = self._open_locked()
        try:
            if overwrite:
                os.ftruncate(self._descriptor, 0)
            self._size = self._load()  # bytes of complete lines; the rest is cut off
            os.ftruncate(self._descriptor, self._size)
            if self._size == 0:
                header = {"format": _FORMAT, "config_hash": self._hash, "config": self.config}
                self._write(row_line(header | self.part))
                sync_folder(self.path.parent)
        except BaseException:
            self.close()
            raise
        self.num_resumed = len(self._done)
        self._last_time = time.monotonic()

    @classmethod
    def stored(cls, path: str | os.PathLike[str]) -> Journal:
        """A journal as it is on disk, of whatever configuration, to be read only. Raises UserError and OSError."""
        with open(path, "rb") as file:
            line = file.readline()
        try:
            header = json.loads(line)
            config = header["config"]
        except (ValueError, KeyError, TypeError):  # `_load` says what is wrong
            return cls(path, {}, is_read_only=True)
        return cls(path, config, is_read_only=True, part=_part(header))

    @property
    def is_begun(self) -> bool:
        """Whether it has a configuration yet."""
        return self._size > 0

    @property
    def done(self) -> dict[int, Row]:
        """A copy of the finished rows by position in the input, including those of earlier runs."""
        return dict(self._done)

    @property
    def seconds(self) -> dict[int, float]:
        """A copy of the wall-clock seconds of each finished row, by position."""
        return dict(self._seconds)

    def append(self, index: int, row: Row, *, seconds: float | None = None) -> None:
        """Writes a finished row to disk. `index` is its position in the input, from 0.

        `seconds` is the time spent on it, by default the time since the previous row, so that a run's rows
        add up to its wall-clock time. A row takes the place of an error row. Raises ValueError for an index that is
        negative or already done, and OSError if the disk is full; the file is then unchanged.
        """
        now = time.monotonic()
        self.extend([(index, row, now - self._last_time if seconds is None else seconds)])
        self._last_time = now

    def extend(self, entries: Iterable[tuple[int, Row, float]]) -> None:
        """Writes several finished rows at once, each with its position and its seconds; else as `append`."""
        assert self._descriptor >= 0, "the journal is open for writing"
        entries, lines = list(entries), []
        for index, row, seconds in entries:
            if index < 0:
                raise ValueError(f"a row's position counts from 0, got {index}")
            if self._has_result(index):
                raise ValueError(f"row {index} of {self.path} is already done")
            key = _row_key(self._hash, index, row)
            lines.append(row_line({"index": index, "key": key, "seconds": round(seconds, 6), "row": row}))
        self._write(b"".join(lines))
        for entry in entries:
            self._keep(*entry)

    def _has_result(self, index: int) -> bool:
        return index in self._done and not is_error_row(self._done[index])

    def _keep(self, index: int, row: Row, seconds: float) -> None:
        self._done[index], self._seconds[index] = row, self._seconds.get(index, 0.0) + seconds

    def seconds_by_strategy(self) -> dict[str, float]:
        """Wall-clock seconds of the finished rows per strategy, over all runs of this file."""
        totals: dict[str, float] = {}
        for index, row in self._done.items():
            totals[row["strategy"]] = totals.get(row["strategy"], 0.0) + self._seconds[index]
        return totals

    def write_rows(self, out: str | os.PathLike[str], *, expected: Sequence[int] = ()) -> int:
        """Writes the finished rows to `out` in input order, atomically; returns their number.

        Raises ValueError, and does not write, if any row at an expected position is missing.
        """
        if missing := sorted(set(expected) - self._done.keys()):
            raise ValueError(f"{len(missing)} of {len(expected)} rows are not done, the first is {missing[0]}")
        write_atomically(out, b"".join(stored_lines(self._done[index]) for index in sorted(self._done)))
        return len(self._done)

    def close(self) -> None:
        """Releases the lock; may be called more than once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_locked(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"cannot open the run ledger {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise JournalInUse(f"another run is writing to {self.path}") from None
        return descriptor

    def _load(self) -> int:
        """Reads the complete lines into `done`; returns their size in bytes."""
        data = self.path.read_bytes()
        if not (data.startswith(_MARK) or _MARK.startswith(data)):
            raise UserError(f"{self.path} is not a run ledger: it starts with {data[:40]!r}")
        size = data.rfind(b"\n") + 1
        lines = data[:size].split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check_header(entry)
                else:
                    self._take(entry)
            except _OtherConfiguration:
                raise
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path}, line {number} is damaged: {error}") from None
        return size

    def _check_header(self, header: dict) -> None:
        theirs = header["config"]
        if _digest(json.dumps(theirs, sort_keys=True)) != header["config_hash"]:
            raise UserError("its configuration does not match its hash")
        if header["config_hash"] != self._hash or _part(header) != self.part:
            changes = difference(theirs | _part(header), self.config | self.part)
            raise _OtherConfiguration(f"{self.path} is of a run with another configuration: {changes}")

    def _take(self, entry: dict) -> None:
        index, row = entry["index"], entry["row"]
        if entry["key"] != _row_key(self._hash, index, row):
            raise UserError(f"the key of row {index} does not fit its configuration, id, seed and position")
        if self._has_result(index):
            raise UserError(f"row {index} stands twice")
        self._keep(index, row, float(entry["seconds"]))

    def _write(self, line: bytes) -> None:
        """Appends a line and syncs it; on any error the file is unchanged."""
        try:
            with naming(self.path):
                written = 0
                while written < len(line):
                    written += os.pwrite(self._descriptor, line[written:], self._size + written)
                os.fsync(self._descriptor)
        except BaseException:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)


class _OtherConfiguration(UserError):
    pass


def _part(header: Mapping[str, object]) -> dict[str, object]:
    """What a shard's header has beside a whole run's."""
    return {name: value for name, value in header.items() if name not in _HEADER}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _row_key(config_hash: str, index: int, row: Row) -> str:
    return _digest(json.dumps([config_hash, row["id"], row["seed"], index]))
