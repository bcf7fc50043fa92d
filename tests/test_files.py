"""Files are whole or not there, and an error names the file that was asked for."""

from __future__ import annotations

import contextlib
import resource

import pytest

from engine.files import write_atomically
from engine.results import Journal
from engine.training.stepwise import write_stepwise
from tests.reports.builders import make_row


@contextlib.contextmanager
def full_disk(num_bytes: int):
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


STEPS = [{"prompt": "p", "completions": ["a\n"] * 1000, "labels": [1.0] * 1000}]


@pytest.mark.parametrize(
    "write",
    [lambda path: write_atomically(path, bytes(1000)), lambda path: write_stepwise(STEPS, path)],
    ids=["bytes", "steps"],
)
def test_what_does_not_fit_leaves_the_old_file_and_no_other(tmp_path, write):
    path = tmp_path / "file.jsonl"
    path.write_text("old")
    with full_disk(100), pytest.raises(OSError, match=r"File too large: '.*file\.jsonl'"):
        write(path)
    assert [each.name for each in tmp_path.iterdir()] == ["file.jsonl"]
    assert path.read_text() == "old"
    write(path)
    assert path.stat().st_size >= 1000


def test_a_row_that_does_not_fit_leaves_the_rows_before_it(tmp_path):
    path = tmp_path / "rows.ledger"
    with Journal(path, {"seed": 0}) as journal:
        journal.append(0, make_row())
        with full_disk(path.stat().st_size + 10), pytest.raises(OSError, match=r"File too large: '.*rows\.ledger'"):
            journal.append(1, make_row("p1"))
    with Journal(path, {"seed": 0}) as journal:
        assert set(journal.done) == {0}
