"""`ttc report` and `ttc env`."""

from __future__ import annotations

import pytest

from engine.results import journal_path, read_rows, seconds_by_strategy
from tests.cli.conftest import assert_refused


def test_a_page_of_two_files(ttc, search, tmp_path):
    search("--strategy", "beam", "--with-tree", out="beam.jsonl")
    search("--strategy", "best-of-n", out="best.jsonl")
    page = tmp_path / "page.html"
    files = [tmp_path / "beam.jsonl", tmp_path / "best.jsonl"]
    outcome = ttc("report", *files, "--out", page, "--title", "Two searches")
    assert outcome.status == 0, outcome.err
    assert "best-of-n" in outcome.out
    assert outcome.last_line == f"8 rows: {page}"
    html = page.read_text()
    assert "Two searches" in html
    assert "<svg" in html


def test_seconds_come_from_the_ledgers(search, tmp_path):
    search("--strategy", "beam", out="beam.jsonl")
    search("--strategy", "best-of-n", out="best.jsonl")
    files = [str(tmp_path / "beam.jsonl"), str(tmp_path / "best.jsonl")]
    seconds = seconds_by_strategy(files)
    assert set(seconds) == {"beam", "best-of-n"}
    assert all(value > 0 for value in seconds.values())
    twice = seconds_by_strategy([*files, files[0]])
    assert twice["beam"] == pytest.approx(2 * seconds["beam"])
    journal_path(files[0]).unlink()
    assert set(seconds_by_strategy(files)) == {"best-of-n"}


def test_bad_results(ttc, tmp_path, search):
    assert_refused(ttc("report", tmp_path / "none.jsonl"), "cannot read results", "none.jsonl")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "a"}\n')
    assert_refused(ttc("report", file), f"{file}, line 1", "'problem'")
    file.write_text("")
    assert_refused(ttc("report", file), f"no result row in {file}")
    assert_refused(ttc("report"), "results")
    search(out="good.jsonl")
    assert len(read_rows(tmp_path / "good.jsonl")) == 4
    assert_refused(ttc("report", tmp_path / "good.jsonl", "--out", tmp_path), str(tmp_path))


def test_env(ttc):
    outcome = ttc("env")
    assert outcome.status == 0
    facts = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    names = {name.strip() for name in facts}
    assert {"python", "torch", "transformers", "cpu", "threads", "instruction sets", "home policy"} <= names
    assert "_native" in outcome.out


def test_a_damaged_ledger_is_named(search, ttc, tmp_path):
    search(out="rows.jsonl")
    path = journal_path(tmp_path / "rows.jsonl")
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n{}\n")
    assert_refused(ttc("report", tmp_path / "rows.jsonl", "--out", tmp_path / "page.html"), f"{path} is damaged")
