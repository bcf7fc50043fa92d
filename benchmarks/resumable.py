"""Run ledgers of everything that samples: one file per pool or cell, one line per finished problem."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from engine.reports.progress import RunProgress
from engine.results import Journal, JournalInUse
from engine.results.rows import Row

MakeRows = Callable[[list[int]], Iterable[tuple[int, Row]]]  # from positions to do, to (position, row)


def run_rows(path: Path, config: dict, num_total: int, make_rows: MakeRows, label: str) -> None:
    """Makes the rows that `path` lacks; killed, the same call goes on at the problem where it stopped.

    What another process is making is left to it, so that several can share the work. Raises UserError where the
    file was made by other models or settings.
    """
    try:
        opened = Journal(path, config)
    except JournalInUse:
        print(f"{label} left to another process", file=sys.stderr)
        return
    with opened as ledger:
        done = ledger.done
        todo = [index for index in range(num_total) if index not in done]
        if not todo:
            return
        with RunProgress(label, num_total, [row for index, row in done.items() if index < num_total]) as progress:
            for index, row in make_rows(todo):
                ledger.append(index, row)
                progress.add(row)


def read_rows(path: Path, config: dict, num_total: int) -> tuple[dict[int, Row], float]:
    """Rows of the first `num_total` problems by position, and the seconds they took; none where there is no file.

    A run may be writing: its torn last line is left out. Raises UserError as `run_rows` does.
    """
    if not path.is_file():
        return {}, 0.0
    ledger = Journal(path, config, is_read_only=True)
    rows = {index: row for index, row in ledger.done.items() if index < num_total}
    return rows, sum(ledger.seconds[index] for index in rows)
