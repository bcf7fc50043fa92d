"""Files are whole or not there, and an error names the file that was asked for."""

from __future__ import annotations

import contextlib
import resource

import pytest

from engine.files import filled_folder, write_atomically
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


def test_a_folder_is_filled_from_within_and_others_beside_it_stay(tmp_path):
    """What is moved stays on the folder's own file system, and `NAME.tmp` is a name that a user may have taken."""
    target, beside = tmp_path / "model", tmp_path / "model.tmp"
    beside.mkdir()
    (beside / "notes.txt").write_text("mine")
    for content in ("old", "new"):
        with filled_folder(target, last="config.json", stale=["*.safetensors"]) as folder:
            assert (folder.parent == target) == (content == "new")
            for name in ("config.json", f"{content}.safetensors"):
                (folder / name).write_text(content)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "new.safetensors"]
    assert (target / "config.json").read_text() == "new"
    assert (beside / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_filled_stays_as_it_was(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")

    def fill() -> None:
        with filled_folder(target, last="config.json") as folder:
            (folder / "config.json").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill()
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert (target / "config.json").read_text() == "old"
