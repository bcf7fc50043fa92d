"""How far a command is and how long the rest may take, on stderr: a bar on a terminal, else lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from engine.reports.tables import accuracy_of
from engine.results.rows import Row

_NUM_LINES = 10
_MAX_SILENCE = 20.0  # seconds


class Progress:
    """A context manager that shows how many parts of a piece of work are done.

    Where stderr is no terminal it prints some ten lines in all, or more of them where a tenth takes long. The
    estimate of what is left takes every part to last as long as those before it.
    """

    def __init__(
        self, label: str, num_total: int, num_done: int = 0, *, note: str = "", max_seconds: float = math.inf
    ) -> None:
        """`num_done`: parts that an earlier run has done. `max_seconds`: the work stops then, finished or not."""
        self.label, self.num_total, self.num_done, self.max_seconds = label, num_total, num_done, max_seconds
        self._num_before, self._started = num_done, time.monotonic()
        self._last_line = self._started
        self._console = Console(stderr=True)
        self._bar = self._make_bar(note) if self._console.is_terminal else None

    def _make_bar(self, note: str) -> Bar:
        columns = (
            TextColumn(self.label),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("{task.fields[left]}"),
        )
        # What is printed meanwhile goes above the bar, unless it goes to a file.
        bar = Bar(*columns, console=self._console, redirect_stdout=sys.stdout.isatty())
        self._task = bar.add_task("", total=self.num_total, completed=self.num_done, note=note, left="")
        return bar

    def advance(self, note: str = "") -> None:
        """One more part is done; `note` is shown beside the count."""
        self.num_done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.num_done, note=note, left=self.time_left())
        elif self._is_line_due():
            self._last_line = time.monotonic()
            parts = (f"{self.label} {self.num_done}/{self.num_total}", note, self.time_left())
            self._console.out(", ".join(filter(None, parts)), highlight=False)

    def time_left(self) -> str:
        """`about 3 min left`; nothing where that is less than a second."""
        elapsed = time.monotonic() - self._started
        seconds = elapsed / max(1, self.num_done - self._num_before) * (self.num_total - self.num_done)
        seconds = min(seconds, self.max_seconds - elapsed)
        return f"about {duration(seconds)} left" if seconds >= 1 else ""

    def _is_line_due(self) -> bool:
        tenths = [num * _NUM_LINES // max(self.num_total, 1) for num in (self.num_done - 1, self.num_done)]
        return tenths[1] > tenths[0] or time.monotonic() - self._last_line > _MAX_SILENCE

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class RunProgress(Progress):
    """The progress of a run that makes a row for every problem, with the accuracy so far.

    `done` are the rows of earlier runs. Rows without a verdict do not count for the accuracy.
    """

    def __init__(self, label: str, num_total: int, done: Iterable[Row] = ()) -> None:
        rows = list(done)
        self.num_graded, self.sum_accuracy = 0, 0.0
        for row in rows:
            self._grade(row)
        super().__init__(label, num_total, len(rows), note=self.accuracy)

    @property
    def accuracy(self) -> str:
        """`accuracy 34.0 %`, or nothing where no row has a verdict."""
        return f"accuracy {100 * self.sum_accuracy / self.num_graded:.1f} %" if self.num_graded else ""

    def add(self, row: Row) -> None:
        """One more row is done."""
        self._grade(row)
        self.advance(self.accuracy)

    def _grade(self, row: Row) -> None:
        accuracy = accuracy_of(row) if "correct" in row else None
        if accuracy is not None:
            self.num_graded += 1
            self.sum_accuracy += accuracy


def duration(seconds: float) -> str:
    """`40 s`, `3 min` or `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
