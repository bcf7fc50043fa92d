"""`--shard` of `ttc search` and `ttc rollouts`, and `ttc merge`: the bytes of one run."""

from __future__ import annotations

import pytest

from engine.results import journal_path, read_rows
from engine.training.stepwise import read_stepwise
from tests.cli.conftest import assert_refused, small_search

ROLLOUTS = ["--num-questions", 5, "--num-samples", 2, "--num-rollouts", 2, "--max-tokens", 40]


def small_rollouts(models, out) -> list[object]:
    return ["rollouts", "--policy", models.policy, "--num-blocks", 4096, "--out", out, *ROLLOUTS]


@pytest.mark.parametrize("more", [[], ["--with-tree"]], ids=["rows", "trees"])
def test_shards_of_a_search(ttc, models, tmp_path, more):
    """They are resumed as whole runs are; what reads results reads the merged file, and a whole run goes on from it."""
    whole, merged = tmp_path / "whole.jsonl", tmp_path / "merged.jsonl"
    more = [*more, "--limit", 7, "--budget", 4]
    assert ttc(*small_search(models, whole), *more).status == 0
    shards = [tmp_path / f"rows.{number}-of-3.jsonl" for number in (3, 1, 2)]
    for out, shard in zip(shards, ("3/3", "1/3", "2/3"), strict=True):
        arguments = [*small_search(models, out), *more, "--shard", shard]
        outcome = ttc(*arguments)
        assert (outcome.status, outcome.last_line.split()[0]) == (0, "3" if shard == "1/3" else "2")
        assert [row["id"] for row in read_rows(out)] == [row["id"] for row in read_rows(whole)[int(shard[0]) - 1 :: 3]]
    lines = journal_path(shards[0]).read_bytes().splitlines(keepends=True)
    journal_path(shards[0]).write_bytes(b"".join(lines[:2]))
    shards[0].unlink()
    words = "shard 3/3 is unfinished: 1 of its 2 rows are missing"
    assert_refused(ttc("merge", "--out", merged, *shards), words, "--allow-missing")
    partly = ttc("merge", "--out", merged, *shards, "--allow-missing")
    assert partly.out == f"6 rows of 3 shards, {words}: {merged}\n"
    assert "resumed 1:" in ttc(*small_search(models, shards[0]), *more, "--shard", "3/3").last_line
    assert ttc("merge", "--out", merged, *shards).out == f"7 rows of 3 shards: {merged}\n"
    assert merged.read_bytes() == whole.read_bytes()
    assert "resumed 7:" in ttc(*small_search(models, merged), *more).last_line
    assert merged.read_bytes() == whole.read_bytes()
    assert ttc("report", merged, "--out", tmp_path / "report.html").last_line.startswith("7 rows: ")


def test_a_shard_is_named_after_itself(ttc, models, tmp_path, monkeypatch):
    """Where the user names no file; and it is no other shard's, nor a whole run's."""
    monkeypatch.chdir(tmp_path)
    arguments = [*small_search(models, "x"), "--budget", 4]
    del arguments[arguments.index("--out") : arguments.index("--out") + 2]
    for number in (1, 2):
        assert ttc(*arguments, "--shard", f"{number}/2").last_line.endswith(f": results.{number}-of-2.jsonl")
    assert_refused(ttc(*arguments, "--shard", "2/2", "--out", "results.1-of-2.jsonl"), 'shard was "1/2", now "2/2"')
    assert_refused(ttc(*arguments, "--out", "results.1-of-2.jsonl"), 'shard was "1/2", now not set')
    assert ttc("merge", "results.1-of-2.jsonl").out == "4 rows of 2 shards: results.jsonl\n", "the other one is found"
    assert_refused(ttc("merge", "results.1-of-2.jsonl", "results.jsonl"), "results.jsonl is the file results.jsonl")
    rollouts = [each for each in small_rollouts(models, "x") if each not in ("--out", "x")]
    assert ttc(*rollouts, "--shard", "2/2").last_line.endswith(": out/rollouts.2-of-2.jsonl")


def test_more_shards_than_problems(ttc, models, tmp_path):
    outs = [tmp_path / f"rows.{number}-of-6.jsonl" for number in range(1, 7)]
    for _ in range(2):  # an empty one is resumed too
        for number, out in enumerate(outs, 1):
            assert ttc(*small_search(models, out), "--budget", 4, "--shard", f"{number}/6").status == 0
    assert (outs[5].read_bytes(), read_rows(outs[5])) == (b"", [])
    merged = tmp_path / "merged.jsonl"
    assert ttc("merge", *outs, "--out", merged).status == 0
    assert ttc(*small_search(models, tmp_path / "whole.jsonl"), "--budget", 4).status == 0
    assert merged.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("is_searched", [False, True], ids=["sampled", "of searches"])
def test_shards_of_rollouts(ttc, models, tmp_path, is_searched):
    """The merged file is that of a whole run, which writes TRL's rows from it without another rollout."""
    whole, merged = tmp_path / "whole.jsonl", tmp_path / "merged.jsonl"
    more: list[object] = []
    if is_searched:
        searched = tmp_path / "searched.jsonl"
        assert ttc(*small_search(models, searched), "--with-tree").status == 0
        more = ["--from", searched, "--num-rollouts", 2]
    start = small_rollouts(models, whole)
    if is_searched:
        start = [*start[: start.index("--num-samples")], *start[start.index("--max-tokens") :]]
    assert ttc(*start, *more, "--trl", tmp_path / "whole.trl").status == 0
    outs = [tmp_path / f"part.{number}-of-2.jsonl" for number in (1, 2)]
    for number, out in enumerate(outs, 1):
        assert ttc(*start, *more, "--out", out, "--shard", f"{number}/2").status == 0
    num = 4 if is_searched else 5
    assert ttc("merge", *reversed(outs), "--out", merged).out == f"{num} rows of 2 shards: {merged}\n"
    assert merged.read_bytes() == whole.read_bytes()
    assert read_stepwise(merged)
    again = ttc(*start, *more, "--out", merged, "--trl", tmp_path / "merged.trl")
    assert again.last_line.endswith(f"resumed {num}: {merged}")
    assert (tmp_path / "merged.trl").read_bytes() == (tmp_path / "whole.trl").read_bytes()


def test_what_cannot_be_divided(ttc, models, tmp_path):
    search, rollouts = small_search(models, tmp_path / "x"), small_rollouts(models, tmp_path / "x")
    shard = ["--shard", "1/2"]
    assert_refused(ttc(*search, "--shard", "3/2"), "shard must be i/n", "got '3/2'")
    total = ["--strategy", "compute-optimal", "--total-budget", 99]
    total = [each for each in [*search, *total] if each not in ("--budget", 8)]
    assert_refused(ttc(*total, *shard), "--total-budget cannot be divided into shards", "got --shard 1/2")
    assert_refused(ttc(*rollouts, *shard, "--pass-rate", "0:1"), "--pass-rate cannot be divided into shards", "1/2")
    assert_refused(ttc(*rollouts, *shard, "--trl", tmp_path / "trl"), "--trl cannot be divided", "once they are merged")
    assert list(tmp_path.iterdir()) == []
