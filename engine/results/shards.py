"""Shards: parts of a run that are done apart, on as many machines as there are, and put together again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.differences import difference
from engine.errors import UserError
from engine.results.journal import Journal, journal_path, open_run
from engine.results.rows import Row, is_error_row

_OF_ITS_MOMENT = ("cached", "recomputed")  # purposes of a row's ledger that depend on what ran beside it


@dataclass(frozen=True)
class Shard:
    """Every `count`-th problem of a run, from the `number`-th on (from 1), so that shards are alike in hardness."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `2/8`. Raises UserError."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"shard must be i/n with i from 1 to n, such as 2/8, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def tag(self) -> str:
        """Its part of a file's name."""
        return f"{self.number}-of-{self.count}"

    def positions(self, num_total: int) -> range:
        """Those of its problems in the whole input."""
        return range(self.number - 1, num_total, self.count)

    def path(self, out: str) -> str:
        """`results.2-of-8.jsonl` for `results.jsonl`."""
        path = Path(out)
        return str(path.with_name(f"{path.stem}.{self.tag}{path.suffix}"))

    def part(self, num_total: int) -> dict[str, object]:
        """What its journal says of it, beside the configuration, which is that of all shards."""
        return {"shard": str(self), "num_total": num_total}


@dataclass
class _Whole:
    """What there is of a run that is done in shards; its first journal says what the others must agree with."""

    first: Journal
    count: int
    num_total: int
    found: set[int] = field(default_factory=set)  # numbers of shards
    rows: dict[int, Row] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    origins: dict[int, Path] = field(default_factory=dict)
    num_doubled: int = 0

    def add(self, journal: Journal) -> None:
        """Takes the rows of a shard. Raises UserError for one of another run, or another row of the same problem."""
        shard, num_total = _shard_of(journal)
        theirs = self.first.config | {"shards": self.count, "num_total": self.num_total}
        if changes := difference(theirs, journal.config | {"shards": shard.count, "num_total": num_total}):
            raise UserError(f"{journal.path} is of another configuration than {self.first.path}: {changes}")
        self.found.add(shard.number)
        positions, seconds = shard.positions(num_total), journal.seconds  # a copy
        for index, row in journal.done.items():
            if index not in positions:
                raise UserError(f"{journal.path} is damaged: row {index} is not of shard {shard}")
            self.take(index, row, seconds[index], journal.path)

    def take(self, index: int, row: Row, seconds: float, origin: Path) -> None:
        """Takes a row unless it is there. A result takes the place of an error. Raises UserError for two results."""
        have = self.rows.get(index)
        self.num_doubled += have is not None
        if not _is_better(row, have):
            if not is_error_row(row) and _lasting(have) != _lasting(row):
                what = f"different rows of problem {row['id']!r} (row {index})"
                raise UserError(f"{self.origins[index]} and {origin} hold {what}")
            return
        self.rows[index], self.seconds[index], self.origins[index] = row, seconds, origin

    def gaps(self) -> str:
        """What is missing, in words: shards, and rows of others."""
        lost, parts = [], []
        for number in range(1, min(self.count, self.num_total) + 1):
            shard = Shard(number, self.count)
            positions = shard.positions(self.num_total)
            num_missing = sum(index not in self.rows for index in positions)
            if num_missing and number not in self.found:
                lost.append(str(shard))
            elif num_missing:
                parts.append(f"shard {shard} is unfinished: {num_missing} of its {len(positions)} rows are missing")
        if lost:
            parts.insert(0, f"shard {lost[0]} is missing" if len(lost) == 1 else f"shards {_listed(lost)} are missing")
        return "; ".join(parts)


def merge_shards(
    paths: Sequence[str], out: str, *, overwrite: bool = False, allow_missing: bool = False
) -> tuple[dict[int, Row], str]:
    """Puts shards together in `out` and its ledger, as one run would have written them.

    `paths` are results of shards, or their ledgers, in any order; of shards that are not named, but stand beside one
    that is, the ledgers are read too. Rows come in input order, each problem once. What `out` holds of the same
    configuration already is kept. Returns the rows by position, and what to say of them.
    Raises UserError for shards that are of different configurations, hold different rows of a problem, or, unless
    `allow_missing`, are missing or unfinished.
    """
    whole = _read(paths)
    gaps = whole.gaps()
    if gaps and not allow_missing:
        raise UserError(f"{gaps} (--allow-missing writes what is there)")
    if not whole.rows:
        raise UserError(f"no row in {', '.join(paths)}")
    doubled = f"{whole.num_doubled} doubled rows left out" if whole.num_doubled else ""
    with open_run(out, whole.first.config, overwrite=overwrite) as journal:
        there, seconds = journal.done, journal.seconds
        for index, row in there.items():
            whole.take(index, row, seconds[index], journal.path)
        rows = {index: row for index, row in sorted(whole.rows.items()) if _is_better(row, there.get(index))}
        journal.extend((index, row, whole.seconds[index]) for index, row in rows.items())
        journal.write_rows(out)
        return journal.done, ", ".join(filter(None, (f"{len(whole.found)} shards", doubled, gaps)))


def _is_better(row: Row, have: Row | None) -> bool:
    """Whether a row is to be written where there is another one, or none: a result goes before an error."""
    return have is None or (is_error_row(have) and not is_error_row(row))


def _read(paths: Sequence[str]) -> _Whole:
    """All shards that are named, then those beside them."""
    whole: _Whole | None = None
    seen: set[str] = set()

    def add(path: Path) -> None:
        nonlocal whole
        if os.path.realpath(path) in seen:
            return
        seen.add(os.path.realpath(path))
        journal = Journal.stored(path)
        if not journal.is_begun:  # of a run that was killed at once
            return
        if whole is None:
            shard, num_total = _shard_of(journal)
            whole = _Whole(journal, shard.count, num_total)
        whole.add(journal)

    for ledger in filter(None, map(_ledger, paths)):
        add(ledger)
    if whole is None:
        raise UserError(f"no run ledger of a shard stands beside {', '.join(paths)}")
    for path in _beside(paths, whole):
        add(path)
    return whole


def _ledger(path: str) -> Path | None:
    """The ledger of a shard's results, or None where the shard was not begun. Raises UserError for results alone."""
    found = Path(path) if path.endswith(".ledger") else journal_path(path)
    if not found.is_file() and Path(path).is_file():
        raise UserError(f"{path}: no run ledger {found.name} stands beside it")
    return found if found.is_file() else None


def _beside(paths: Iterable[str], whole: _Whole) -> Iterator[Path]:
    """Ledgers of shards that are not among those found, by the name of one that is."""
    mark = re.compile(rf"\.[0-9]+-of-{whole.count}(?=\.|$)")
    for number in {*range(1, min(whole.count, whole.num_total) + 1)} - whole.found:
        tag = Shard(number, whole.count).tag
        names = {journal_path(path.removesuffix(".ledger")) for path in paths}
        for ledger in {path.with_name(mark.sub(f".{tag}", path.name)) for path in names if mark.search(path.name)}:
            if ledger.is_file():
                yield ledger


def _shard_of(journal: Journal) -> tuple[Shard, int]:
    """The shard that a journal is of, and the number of problems in the whole input."""
    part = journal.part
    if not isinstance(part.get("shard"), str) or type(part.get("num_total")) is not int:
        raise UserError(f"{journal.path} is not of a shard: its run was not started with --shard")
    return Shard.parse(part["shard"]), part["num_total"]


def _lasting(row: Row) -> Row:
    """A row without what depends on the searches that ran beside it."""
    if "ledger" not in row:
        return row
    parts = {
        name: {purpose: amount for purpose, amount in each.items() if purpose not in _OF_ITS_MOMENT}
        for name, each in row["ledger"].items()
    }
    return row | {"ledger": parts}


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
