"""What a long command prints while it works: counts, and an estimate of what is left."""

from __future__ import annotations

import pytest

from engine.reports import progress
from engine.reports.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still; its one entry is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_the_rest_is_taken_to_last_as_long_as_what_was_done(clock, capsys):
    with Progress("cases:", 4) as shown:
        for note in ("one", "two", "", "four"):
            clock[0] += 10
            shown.advance(note)
    assert lines(capsys) == [
        "cases: 1/4, one, about 30 s left",
        "cases: 2/4, two, about 20 s left",
        "cases: 3/4, about 10 s left",
        "cases: 4/4, four",
    ]


def test_parts_of_an_earlier_run_took_no_time(clock, capsys):
    with Progress("problems", 10, num_done=8) as shown:
        clock[0] += 60
        shown.advance()
    assert lines(capsys) == ["problems 9/10, about 60 s left"]


def test_work_that_is_cut_off_takes_no_longer(clock, capsys):
    with Progress("cases:", 10, max_seconds=100) as shown:
        clock[0] += 60
        shown.advance()
    assert lines(capsys) == ["cases: 1/10, about 40 s left"]


def test_ten_lines_but_never_a_long_silence(clock, capsys):
    with Progress("quick:", 100) as shown:
        for _ in range(100):
            shown.advance()
    assert len(lines(capsys)) == 10
    with Progress("slow:", 100) as shown:
        for _ in range(5):
            clock[0] += 21
            shown.advance()
    assert [line.split(",")[0] for line in lines(capsys)] == [f"slow: {num}/100" for num in range(1, 6)]


def test_durations():
    assert [duration(seconds) for seconds in (7.4, 89, 90, 3600, 5400, 9000)] == [
        *("7 s", "89 s", "2 min", "60 min", "1 h 30 min", "2 h 30 min")
    ]
