"""How far a run is, on stderr: a bar on a terminal, else ten lines in all."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.reports.tables import accuracy_of
from engine.results.rows import Row

_NUM_LINES = 10


class RunProgress:
    """A context manager that shows how many items are done, and how accurate they are so far.

    `done` are the rows of earlier runs. Rows without a verdict do not count for the accuracy.
    """

    def __init__(self, label: str, num_total: int, done: Iterable[Row] = ()) -> None:
        self.label, self.num_total = label, num_total
        self.num_done, self.num_graded, self.sum_accuracy = 0, 0, 0.0
        for row in done:
            self._count(row)
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task("", total=num_total, completed=self.num_done, note=self.accuracy)
        self._console = console

    @property
    def accuracy(self) -> str:
        """`accuracy 34.0 %`, or nothing where no row has a verdict."""
        return f"accuracy {100 * self.sum_accuracy / self.num_graded:.1f} %" if self.num_graded else ""

    def add(self, row: Row) -> None:
        """One more row is done."""
        self._count(row)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.num_done, note=self.accuracy)
        elif self._tenth(self.num_done) > self._tenth(self.num_done - 1):
            note = f", {self.accuracy}" if self.accuracy else ""
            self._console.out(f"{self.label} {self.num_done}/{self.num_total}{note}", highlight=False)

    def _tenth(self, num_done: int) -> int:
        return num_done * _NUM_LINES // max(self.num_total, 1)

    def _count(self, row: Row) -> None:
        self.num_done += 1
        accuracy = accuracy_of(row) if "correct" in row else None
        if accuracy is not None:
            self.num_graded += 1
            self.sum_accuracy += accuracy

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
