"""Runs that are killed: what a torn file may lose, and that the benchmark would see what is lost, twice or another."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.reliability import kills
from engine.results import Journal, journal_path
from tests.reports.builders import make_row


def written(folder: Path, num_rows: int) -> bytes:
    with Journal(journal_path(folder / kills.OUT), {"seed": 0}) as journal:
        for index in range(num_rows):
            journal.append(index, make_row(f"p{index}"))
    return journal.path.read_bytes()


def test_a_journal_loses_its_last_line_at_most(tmp_path):
    kinds = set()
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        before = written(folder, 3)
        kinds.add(kind := kills.tear(folder, random.Random(seed)))
        after = journal_path(folder / kills.OUT).read_bytes()
        assert (kind == "") == (after == before)
        assert kills.whole_rows(folder) == ([0, 1] if kind == "cut" else [0, 1, 2])
        with Journal(journal_path(folder / kills.OUT), {"seed": 0}) as journal:
            assert sorted(journal.done) == kills.whole_rows(folder)
    assert kinds == {"", "cut", "garbage"}


def test_of_a_training_a_file_of_the_last_checkpoint_is_cut(tmp_path):
    path = tmp_path / "work" / "checkpoint-500" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(100))
    kinds = [kills.tear(tmp_path, random.Random(seed)) for seed in range(8)]
    assert set(kinds) == {"", "cut"}
    assert path.stat().st_size < 100


class Fake(kills.Commanded):
    """A command whose resumed run has these results, rows and words."""

    def __init__(self, folder: Path, found: bytes, rows: list[int], said: str):
        self.name, self.folder, self.rng = "fake", folder, random.Random(0)
        self.counts, self.failures, self.whole = kills.Counter(), [], {"out": b"whole"}
        self.found, self.rows, self.said = found, rows, said

    def _killed(self, number: int) -> tuple[Path, str]:
        self.folder.mkdir()
        written(self.folder, 2)
        return self.folder, "at once"

    def _finish(self, folder: Path, point: int) -> dict[str, bytes]:
        path = journal_path(folder / kills.OUT)
        path.write_bytes(b"{}\n" + b"".join(b'{"index": %d}\n' % row for row in self.rows))
        (folder / "log").write_text(self.said.format(len(self.kept)))
        return {"out": self.found}

    @property
    def kept(self) -> list[int]:
        return [0, 1][: self.counts["rows kept"]]


def test_what_differs_is_reported(tmp_path):
    cases = {
        "": (b"whole", [0, 1, 2], "resumed {}: out"),
        "other results": (b"other", [0, 1, 2], "resumed {}: out"),
        "a row twice": (b"whole", [0, 1, 1], "resumed {}: out"),
        "rows resumed": (b"whole", [0, 1, 2], "started anew"),
    }
    for number, (words, case) in enumerate(cases.items()):
        fake = Fake(tmp_path / str(number), *case)
        fake.point(0)
        assert len(fake.failures) == (words != "")
        assert all(words in failure for failure in fake.failures)
        assert fake.counts["equal"] == (words == "")


class Refused(kills.Commanded):
    """A command that is given with another seed, and does this before it says no."""

    def __init__(self, does):
        self.name, self.counts, self.failures, self.does = "fake", kills.Counter(), [], does

    def _run_with_another_seed(self, folder: Path) -> tuple[int, str]:
        self.does(folder)
        return 2, "error: seed was 0, now 1"


def test_a_refused_run_changes_nothing(tmp_path):
    def journal(folder: Path) -> Path:
        return journal_path(folder / kills.OUT)

    def cut(folder: Path) -> None:
        journal(folder).write_bytes(journal(folder).read_bytes()[:-10])

    def model(folder: Path) -> Path:
        return folder / "work" / "checkpoint-2" / "model.safetensors"

    cases = {
        lambda folder: None: 0,
        lambda folder: journal(folder).unlink(): 1,
        lambda folder: journal(folder).write_bytes(b""): 1,
        cut: 1,
        lambda folder: model(folder).unlink(): 1,
        lambda folder: model(folder).write_bytes(b"1"): 1,
    }
    for number, (does, num_failures) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        model(folder).parent.mkdir(parents=True)
        model(folder).write_bytes(bytes(10))
        written(folder, 2)
        fake = Refused(does)
        fake._check_refused(folder)
        assert len(fake.failures) == num_failures
        assert fake.counts["refused"] == (num_failures == 0)


def test_a_torn_line_may_be_cut_off(tmp_path):
    whole = written(tmp_path, 2)
    path = journal_path(tmp_path / kills.OUT)
    path.write_bytes(whole + b"torn")
    fake = Refused(lambda folder: path.write_bytes(whole))
    fake._check_refused(tmp_path)
    assert not fake.failures
