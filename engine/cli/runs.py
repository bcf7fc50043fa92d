"""Runs that can be killed: rows go through the journal, and the results file is written at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.cli.outputs import RunOutput, failures, uncounted
from engine.errors import UserError
from engine.interrupts import Uninterrupted
from engine.reports.progress import RunProgress
from engine.results import Journal, open_run
from engine.results.rows import Row

if TYPE_CHECKING:
    from engine.model import Ranks

# From the positions that are still to be done, to (position, row) in any order.
MakeRows = Callable[[list[int]], Iterator[tuple[int, Row]]]


class Selection(Protocol):
    """What is told of every row, those of earlier runs first."""

    num_wanted: int

    @property
    def num_kept(self) -> int:
        """The kept rows, `num_wanted` at most."""
        ...

    def add(self, position: int, row: Row) -> bool:
        """Takes a row; whether it is kept."""
        ...


def run_rows(
    output: RunOutput,
    config: dict,
    make_rows: MakeRows,
    *,
    num_total: int,
    label: str,
    write: Callable[[Journal], str] | None = None,
    ranks: Ranks | None = None,
    selection: Selection | None = None,
) -> str:
    """Makes the rows of a run, or of its shard, that no earlier run has made, and writes all of them in input order.

    A `selection` is told of every row. Those that it keeps are counted in the place of all, and others may be missing.
    `write` writes the file in another form, and gives a part of the line that is returned, which says how it went. Of
    several `ranks` the first one calls this and the others `follow_rows`.
    Raises UserError where the file holds another run.
    """
    out, positions = output.out, output.positions(num_total)
    check_out(out)
    with _open(output, config, num_total) as journal:
        done = {index: row for index, row in journal.done.items() if output.is_done(row)}
        num_resumed = len(done)
        kept = done if selection is None else {index: row for index, row in done.items() if selection.add(index, row)}
        num_wanted = len(positions) if selection is None else selection.num_wanted
        try:
            with RunProgress(label, num_wanted, kept.values()) as progress:
                todo = [index for index in positions if index not in done]
                todo = todo if ranks is None else ranks.of_first(todo)
                for index, row in make_rows(todo) if todo else ():
                    with Uninterrupted():
                        journal.append(index, row)
                        if selection is None or selection.add(index, row):
                            progress.add(row)
            if write is None:
                journal.write_rows(out, expected=positions)
            note = "" if write is None else write(journal)
        except KeyboardInterrupt:
            num_done = len(journal.done) if selection is None else selection.num_kept
            goes_on = "; the same command goes on from there" if journal.done else ""
            print(f"interrupted: {num_done} of {num_wanted} {label} are done{goes_on}", file=sys.stderr)
            raise
        finally:
            if positions and not journal.done:  # nothing to resume, and no configuration worth holding anyone to
                journal.path.unlink(missing_ok=True)
        parts = [
            f"{len(positions) if selection is None else selection.num_kept} {label}",
            progress.accuracy,
            note,
            *_remarks(journal.done),
            f"{sum(journal.seconds_by_strategy().values()):.1f} s",
        ]
        if num_resumed:
            parts.append(f"resumed {num_resumed}")
        return ", ".join(filter(None, parts)) + f": {out}"


def _remarks(rows: dict[int, Row]) -> Iterator[str]:
    """What is to be known of the rows beside their accuracy; each may be empty."""
    yield failures(rows)
    num_errors = sum(row.get("num_errors", 0) for row in rows.values())
    yield f"{num_errors} answers left out (NaN, or too long for the verifier)" if num_errors else ""
    finishes = [finish for row in rows.values() for finish in row.get("finishes", ())]
    yield cut_answers(finishes.count("length"), len(finishes))
    yield uncounted(rows.values())


def follow_rows(make_rows: MakeRows, ranks: Ranks) -> None:
    """Makes the rows that the first rank makes, and writes none."""
    if todo := ranks.of_first([]):
        for _ in make_rows(todo):
            pass


def cut_answers(num_cut: int, num_answers: int) -> str:
    """What to do where most answers ran into --max-tokens; nothing where most of them ended."""
    if 2 * num_cut <= num_answers:
        return ""
    advice = "raise it, or see whether the model was trained on this form of prompt"
    return f"{num_cut} of {num_answers} answers were cut off at --max-tokens ({advice})"


def check_out(out: str, *sources: str | None) -> None:
    """Raises UserError for a path that results cannot be written to: none, a folder, or one of the `sources` read."""
    if not out or Path(out).is_dir():
        raise UserError(f"results go to a file, {out!r} is {'a folder' if out else 'no name'}")
    for source in sources:
        if source is not None and Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
            raise UserError(f"{out} is the file {source} that is read: the results would replace it")


def _open(output: RunOutput, config: dict, num_total: int) -> Journal:
    part = None if output.part is None else output.part.part(num_total)
    try:
        return open_run(output.out, config, overwrite=output.overwrite, part=part)
    except UserError as error:
        if "another configuration" not in str(error):
            raise
        raise UserError(f"{error} (choose another --out, or --overwrite)") from None
