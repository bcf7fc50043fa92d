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
