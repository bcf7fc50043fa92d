"""One set of tiny models, and a way to call the command line in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.cli import main
from engine.results import read_rows
from engine.results.rows import Row
from tests.tiny import tiny_policy, tiny_prm, tiny_trunk_head


@dataclass(frozen=True)
class Models:
    policy: Path
    other_policy: Path
    prm: Path
    other_prm: Path
    trunk_head: Path
    other_trunk_head: Path


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        tiny_policy(folder / "policy"),
        tiny_policy(folder / "other_policy", seed=10),
        tiny_prm(folder / "prm"),
        tiny_prm(folder / "other_prm", seed=11),
        tiny_trunk_head(folder / "trunk_head"),
        tiny_trunk_head(folder / "other_trunk_head", seed=12),
    )


@pytest.fixture
def ttc(capsys: pytest.CaptureFixture[str]):
    """Runs `ttc` with arguments; an exception that leaves `main` is a bug and fails the test."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture
def search(ttc, models: Models, tmp_path: Path):
    """Runs a small `ttc search` with the tiny models; returns its rows. Later options win."""

    def call(*arguments: object, out: str = "rows.jsonl", verifier: str | None = "prm") -> list[Row]:
        outcome = ttc(*small_search(models, tmp_path / out, verifier), *arguments)
        assert outcome.status == 0, outcome.err
        return read_rows(tmp_path / out)

    return call


def small_search(models: Models, out: Path, verifier: str | None = "prm") -> list[object]:
    """The arguments of a search that takes a fraction of a second; `verifier` None loads none."""
    arguments: list[object] = ["search", "--policy", models.policy, "--out", out]
    arguments += ["--limit", 4, "--budget", 8, "--max-tokens", 24, "--num-blocks", 16384]
    if verifier == "prm":
        arguments += ["--prm", models.prm]
    elif verifier == "trunk":
        arguments += ["--verifier", "trunk", "--trunk-head", models.trunk_head]
    return arguments


def graded(folder: Path) -> list[object]:
    """A file of problems and a task in which what a random model writes has an answer: its last number."""
    path = folder / "graded.jsonl"
    rows = [{"problem": f"?{index}?2?=c;d3?1?4?", "answer": str(index % 10)} for index in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path, "--task", "gsm8k"]


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """Exit status 2 and one line on stderr that holds all parts; nothing on stdout."""
    assert outcome.status == 2
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def comparable(rows: list[Row]) -> list[Row]:
    """Rows without what depends on which problems ran beside one another."""
    rows = json.loads(json.dumps(rows))
    for row in rows:
        for part in row["ledger"].values():
            del part["cached"], part["recomputed"]
    return rows
