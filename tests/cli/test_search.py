"""What `ttc search` writes, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.results import journal_path, read_rows
from engine.results.rows import FIELDS, Row
from engine.tasks import get_task, take_problems
from tests.cli.conftest import assert_refused, comparable, small_search
from tests.model.folders import change_config


def test_fifty_rows_in_order(ttc, models, tmp_path):
    def run(out: str, *more: object) -> list[Row]:
        beam = ["--task", "walks", "--split", "test", "--strategy", "beam", "--beam-width", 4, "--seed", 0]
        limits = ["--limit", 50, "--budget", 16, "--max-tokens", 24, "--num-blocks", 16384]
        arguments = ["search", *beam, *limits, "--policy", models.policy, "--prm", models.prm]
        outcome = ttc(*arguments, "--out", tmp_path / out, *more)
        assert outcome.status == 0, outcome.err
        assert outcome.last_line.startswith("50 problems, accuracy ")
        assert "resumed" not in outcome.out
        return read_rows(tmp_path / out)

    rows = run("a.jsonl")
    problems = take_problems(get_task("walks"), "test", 50)
    assert [row["id"] for row in rows] == [problem.id for problem in problems]
    assert [row["problem"] for row in rows] == [problem.prompt for problem in problems]
    assert [row["answer"] for row in rows] == [problem.answer for problem in problems]
    for row in rows:
        assert set(FIELDS) <= row.keys()
        assert (row["strategy"], row["budget"], row["seed"]) == ("beam", 16, 0)
        assert len(row["completions"]) == 16
        assert row["correct"] is (row["pred"] == row["answer"])
    assert comparable(run("b.jsonl")) == comparable(rows)
    assert comparable(run("c.jsonl", "--max-batch", 7)) == comparable(rows)


def test_a_problem_file(ttc, models, tmp_path):
    file = tmp_path / "problems.jsonl"
    lines = [
        {"problem": "?3?5?=a", "answer": 60, "source": "mine"},
        {"problem": "e2?", "id": "seven"},
        {"problem": "d1?2?", "answer": None, "id": 7},
    ]
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)))
    arguments = small_search(models, tmp_path / "rows.jsonl")
    assert ttc(*arguments, file).status == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["id"] for row in rows] == ["0", "seven", "7"]
    assert [row["problem"] for row in rows] == ["?3?5?=a\n", "e2?\n", "d1?2?\n"]
    assert [row["answer"] for row in rows] == ["60", None, None]
    assert [row["correct"] is None for row in rows] == [False, True, True]
    assert ttc(*arguments, file, "--limit", 2, "--overwrite").status == 0
    assert len(read_rows(tmp_path / "rows.jsonl")) == 2


def test_answers_that_are_cut_off_are_told(ttc, models, tmp_path):
    """In the closing line, with their number and what to do; a few of them are no matter."""
    arguments = [*small_search(models, tmp_path / "rows.jsonl", None), "--strategy", "majority", "--max-tokens"]
    outcome = ttc(*arguments, 2)
    finishes = [finish for row in read_rows(tmp_path / "rows.jsonl") for finish in row["finishes"]]
    assert finishes.count("length") > len(finishes) / 2
    words = f", {finishes.count('length')} of 32 answers were cut off at --max-tokens (raise it, or "
    assert words in outcome.last_line
    assert "cut off" not in ttc(*arguments, 300, "--overwrite").last_line


def test_a_policy_without_an_end_token_is_told(ttc, models, tmp_path):
    folder = shutil.copytree(models.policy, tmp_path / "endless")
    change_config(folder, eos_token_id="absent")
    (folder / "generation_config.json").unlink()
    outcome = ttc(*small_search(models, tmp_path / "rows.jsonl"), "--policy", folder)
    assert outcome.status == 0
    (warning,) = [line for line in outcome.err.splitlines() if "end-of-text" in line]
    assert warning.startswith(f"warning: {folder} names no end-of-text token")
    assert "32 of 32 answers were cut off" in outcome.last_line


def test_finished_problems_are_not_searched_again(ttc, models, tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = small_search(models, out)
    assert ttc(*arguments).status == 0
    rows, written = out.read_bytes(), journal_path(out).read_bytes()
    out.unlink()
    outcome = ttc(*arguments, "--max-batch", 5, "--num-blocks", 300)
    assert outcome.status == 0
    assert "resumed 4" in outcome.last_line
    assert outcome.err == ""
    assert (out.read_bytes(), journal_path(out).read_bytes()) == (rows, written)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--budget", 4, "budget was 8, now 4"),
        ("--seed", 1, "seed was 0, now 1"),
        ("--strategy", "best-of-n", 'strategy was "beam", now "best-of-n"'),
        ("--temperature", 0.5, "sampling.temperature was 1.0, now 0.5"),
        ("--limit", 3, "num_problems was 4, now 3"),
        ("--split", "train", "problems was"),
        ("--beam-width", 2, "strategy.width was 4, now 2"),
        ("--dtype", "bf16", "dtype was"),
    ],
)
def test_another_configuration_is_refused(ttc, models, tmp_path, option, value, named):
    out = tmp_path / "rows.jsonl"
    assert ttc(*small_search(models, out)).status == 0
    rows, written = out.read_bytes(), journal_path(out).read_bytes()
    assert_refused(ttc(*small_search(models, out), option, value), str(out), named, "--overwrite")
    assert (out.read_bytes(), journal_path(out).read_bytes()) == (rows, written)


def test_other_checkpoints_are_another_configuration(ttc, models, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert ttc(*small_search(models, out)).status == 0
    assert_refused(ttc(*small_search(models, out), "--policy", models.other_policy), "policy_digest was")
    assert_refused(ttc(*small_search(models, out), "--prm", models.other_prm), "prm_digest was")


def test_overwrite(ttc, models, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert ttc(*small_search(models, out)).status == 0
    outcome = ttc(*small_search(models, out), "--seed", 1, "--overwrite")
    assert outcome.status == 0
    assert "resumed" not in outcome.out
    assert {row["seed"] for row in read_rows(out)} == {1}
    journal_path(out).unlink()
    assert_refused(ttc(*small_search(models, out)), str(out), "no run ledger")


def test_a_run_that_fails_keeps_what_was_there(ttc, models, tmp_path):
    """An error in a search leaves earlier results alone, and a run without one row leaves nothing."""
    out, file = tmp_path / "rows.jsonl", tmp_path / "problems.jsonl"
    file.write_text('{"problem": "not a walk"}\n')
    oracle = [*small_search(models, out, verifier=None), "--verifier", "oracle"]
    assert_refused(ttc(*oracle, file), "not a walks problem")
    assert not journal_path(out).exists()
    assert ttc(*oracle).status == 0
    rows = out.read_bytes()
    assert_refused(ttc(*oracle, file), "another configuration")
    assert_refused(ttc(*oracle, "--policy", "nowhere", "--overwrite"), "nowhere")
    assert out.read_bytes() == rows
    assert "resumed 4" in ttc(*oracle).last_line


def test_a_torn_ledger_gives_the_same_rows(ttc, models, tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = small_search(models, out)
    assert ttc(*arguments).status == 0
    rows, whole = read_rows(out), journal_path(out).read_bytes()
    rng = random.Random(0)
    for _ in range(15):
        size = rng.randrange(len(whole))
        journal_path(out).write_bytes(whole[:size])
        out.unlink()
        num_kept = max(0, whole[:size].count(b"\n") - 1)
        outcome = ttc(*arguments)
        assert outcome.status == 0, outcome.err
        assert ("resumed" in outcome.last_line) == (num_kept > 0)
        assert not num_kept or f"resumed {num_kept}:" in outcome.last_line
        assert comparable(read_rows(out)) == comparable(rows)


def test_interrupted_and_killed(ttc, models, tmp_path):
    """Ctrl-C, then kill -9, then to the end: the rows of a run that nobody disturbed."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    more = ["--strategy", "majority", "--limit", 60]
    assert ttc(*small_search(models, whole, None), *more).status == 0
    arguments = [*small_search(models, out, None), *more, "--max-batch", 2]
    command = [sys.executable, "-m", "engine.cli", *map(str, arguments)]

    status, err = _stop(command, out, after=10, with_signal=signal.SIGINT)
    assert status == 130
    assert "Traceback" not in err
    num_interrupted = _num_rows(out)
    assert f"interrupted: {num_interrupted} of 60 problems are done" in err
    assert not out.exists()

    status, _ = _stop(command, out, after=num_interrupted + 10, with_signal=signal.SIGKILL)
    assert status == -signal.SIGKILL
    num_killed = _num_rows(out)
    assert num_interrupted < num_killed < 60

    outcome = ttc(*small_search(models, out, None), *more)
    assert outcome.status == 0
    assert outcome.last_line.endswith(f"resumed {num_killed}: {out}")
    assert comparable(read_rows(out)) == comparable(read_rows(whole))
    assert _num_rows(out) == 60


def _stop(command: list[str], out: Path, *, after: int, with_signal: int) -> tuple[int, str]:
    """Starts a command, sends a signal once so many rows are on the disk; its exit status and stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits "ignored"
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        signal.signal(signal.SIGINT, before)
    while process.poll() is None and _num_rows(out) < after:
        time.sleep(0.005)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(with_signal)
    _, err = process.communicate()
    return process.returncode, err


def _num_rows(out: Path) -> int:
    path = journal_path(out)
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0
