"""`--on-error row`: a problem that fails becomes a row with its error, and the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.results import journal_path, read_results
from tests.cli.conftest import assert_refused, small_search
from tests.tiny import tiny_policy

GOOD, OTHER = "?3?5?=a", "d1?2?"
LONG = "?1" * 40  # over a context of 64


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("models") / "short", context=64)


def problems(folder: Path, *texts: str) -> Path:
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps({"problem": text, "answer": "60"}) + "\n" for text in texts))
    return file


@pytest.fixture
def failing(models, short, tmp_path) -> list[object]:
    """A search of four problems: one over the context, and one that the verifier cannot read."""
    file = problems(tmp_path, GOOD, LONG, OTHER, "not a walk")
    arguments = [*small_search(models, tmp_path / "rows.jsonl", None), "--policy", short, "--verifier", "oracle"]
    return [*arguments, "--strategy", "best-of-n", "--budget", 2, "--max-tokens", 16, file]


def test_errors_are_rows(ttc, failing, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert_refused(ttc(*failing), "line 2: the prompt has")
    outcome = ttc(*failing, "--on-error", "row")
    assert outcome.status == 0, outcome.err
    results, errors = read_results(out)
    assert [row["problem"] for row in results] == [f"{GOOD}\n", f"{OTHER}\n"]
    assert [json.loads(line)["id"] for line in out.read_bytes().splitlines()] == ["0", "1", "2", "3"]
    assert [row["id"] for row in errors] == ["1", "3"]
    assert "line 2: the prompt has 81 tokens, the context of " in errors[0]["error"]
    assert errors[1] == {
        **{"id": "3", "problem": "not a walk\n", "answer": "60"},
        **{"strategy": "best-of-n", "budget": 2, "seed": 0, "error": errors[1]["error"]},
    }
    assert "not a walks problem" in errors[1]["error"]
    assert f", 2 failed (problem 1: {errors[0]['error']}; --retry-errors tries again), " in outcome.last_line
    assert outcome.last_line.startswith("4 problems, accuracy 0.0 %, ")


def test_they_stand_unless_they_are_tried_again(ttc, failing, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert ttc(*failing, "--on-error", "row").status == 0
    written = journal_path(out).read_bytes()
    again = ttc(*failing, "--on-error", "row")
    assert "resumed 4: " in again.last_line
    assert "2 failed" in again.last_line
    assert journal_path(out).read_bytes() == written
    tried = ttc(*failing, "--on-error", "row", "--retry-errors")
    assert "resumed 2: " in tried.last_line
    assert (len(read_results(out)[1]), out.read_bytes().count(b"\n")) == (2, 4)
    # One of them had failed for want of memory.
    lines = written.splitlines(keepends=True)
    entries = [json.loads(line) for line in lines[1:]]
    at = next(place for place, entry in enumerate(entries, 1) if entry["index"] == 0)
    row = entries[at - 1]["row"]
    broken = {name: row[name] for name in ("id", "problem", "answer", "strategy", "budget", "seed")} | {"error": "x"}
    lines[at] = json.dumps(entries[at - 1] | {"row": broken}).encode() + b"\n"
    journal_path(out).write_bytes(b"".join(lines))
    assert "3 failed" in ttc(*failing, "--on-error", "row").last_line
    assert "2 failed" in ttc(*failing, "--on-error", "row", "--retry-errors").last_line
    assert read_results(out)[0][0] == row


def test_other_rows_are_those_of_a_run_without_failures(ttc, failing, tmp_path):
    assert ttc(*failing, "--on-error", "row").status == 0
    rows = {row["problem"]: row for row in read_results(tmp_path / "rows.jsonl")[0]}
    (tmp_path / "good").mkdir()
    file = problems(tmp_path / "good", GOOD)
    assert ttc(*failing[:-1], file, "--overwrite").status == 0
    assert read_results(tmp_path / "rows.jsonl") == ([rows[f"{GOOD}\n"]], [])


def test_a_pool_that_is_too_small(ttc, models, tmp_path):
    file = problems(tmp_path, "?1" * 60, GOOD)
    arguments = [*small_search(models, tmp_path / "rows.jsonl", None), "--strategy", "majority", "--num-blocks", 6]
    assert_refused(ttc(*arguments, file), "needs 10 KV blocks, the pool has 6")
    assert "1 failed (problem 0: " in ttc(*arguments, file, "--on-error", "row").last_line
    (row,) = read_results(tmp_path / "rows.jsonl")[1]
    assert "needs 10 KV blocks, the pool has 6" in row["error"]


def test_what_reads_results_leaves_them_out(ttc, failing, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert ttc(*failing, "--with-tree", "--on-error", "row").status == 0
    words = "2 rows with an error in the place of a result are left out"
    report = ttc("report", out, "--out", tmp_path / "report.html")
    assert report.last_line == f"2 rows, {words}: {tmp_path / 'report.html'}"
    assert words in ttc("grade", out, "--task", "walks").last_line
    verify = ttc("verify", "--results", out, "--task", "walks", "--out", tmp_path / "verify.html")
    assert (verify.status, f"warning: {words}\n" in verify.err) == (0, True), verify.err
    start = ["rollouts", "--from", out, "--policy", failing[2], "--num-blocks", 4096, "--num-rollouts", 0]
    rolled = ttc(*start, "--out", tmp_path / "rolled.jsonl")
    assert f"warning: {words}\n" in rolled.err
    out.write_text("".join(line for line in out.read_text().splitlines(keepends=True) if '"error"' in line))
    assert_refused(ttc("report", out), "no result row in", words)


def test_rollouts(ttc, models, short, tmp_path):
    """A question that fails has no answers in the file; its error stands in the ledger."""
    file, out = problems(tmp_path, GOOD, LONG, OTHER, "b4?"), tmp_path / "rows.jsonl"
    arguments = ["rollouts", "--policy", short, "--problems", file, "--num-blocks", 4096, "--out", out]
    arguments += ["--num-samples", 2, "--num-rollouts", 0, "--task", "gsm8k", "--problem-column", "problem"]
    arguments += ["--max-tokens", 12]
    assert_refused(ttc(*arguments), "the prompt has 8")
    for more in ([], ["--workers", 2], ["--pass-rate", "0:1", "--pass-samples", 2]):
        outcome = ttc(*arguments, *more, "--on-error", "row", "--overwrite")
        assert outcome.status == 0, outcome.err
        assert ", 1 failed (problem 1: the prompt has 8" in outcome.last_line
        written = [json.loads(line) for line in journal_path(out).read_bytes().splitlines()[1:]]
        assert [entry["index"] for entry in written if "error" in entry["row"]] == [1]
        assert len(written) == 4
    assert ttc(*arguments, "--on-error", "row", "--overwrite", "--shard", "2/2").status == 0
    merged = ttc("merge", out, "--allow-missing", "--out", tmp_path / "merged.jsonl")
    assert ", 1 failed (problem 1: the prompt has 8" in merged.last_line


def test_what_is_no_way_to_go_on(ttc, models, tmp_path):
    arguments = small_search(models, tmp_path / "x")
    assert_refused(ttc(*arguments, "--on-error", "skip"), "on_error must be stop or row, got 'skip'")
    total = [each for each in arguments if each not in ("--budget", 8)]
    total += ["--strategy", "compute-optimal", "--total-budget", 99, "--on-error", "row"]
    assert_refused(ttc(*total), "--on-error row is not for --total-budget")
