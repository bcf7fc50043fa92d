"""Every error that a user can cause: one sentence with the value received, exit status 2."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import time

import pytest

from tests.cli.conftest import assert_refused, small_search
from tests.tiny import tiny_policy

GOOD = json.dumps({"problem": "?3?5?=a", "answer": "60"})


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--strategy", "telepathy"], ["strategy must be one of", "'telepathy'"]),
        (["--budget", "0"], ["budget", "got 0"]),
        (["--budget", "-3"], ["budget", "got -3"]),
        (["--budget", "1000000000"], ["budget", "got 1000000000"]),
        (["--budget", "many"], ["--budget", "'many'"]),
        (["--beam-width", "9"], ["beam width", "budget of 8", "got 9"]),
        (["--beam-width", "-1"], ["beam width", "got -1"]),
        (["--num-iterations", "0"], ["max_rounds", "got 0"]),
        (["--strategy", "dvts", "--beam-width", "3"], ["dvts", "got 8"]),
        (["--strategy", "lookahead", "--lookahead", "-1"], ["lookahead", "got -1"]),
        (["--strategy", "rebase", "--rebase-temperature", "0"], ["rebase temperature", "got 0.0"]),
        (["--strategy", "adaptive", "--confidence", "0.5"], ["confidence", "got 0.5"]),
        (["--strategy", "adaptive", "--adaptive-batch", "0"], ["adaptive batch", "got 0"]),
        (["--strategy", "adaptive", "--vote", "naive"], ["weighted and majority", "'naive'"]),
        (["--max-duplicates", "-1"], ["max_duplicates", "got -1"]),
        (["--vote", "loud"], ["vote must be one of", "'loud'"]),
        (["--agg-strategy", "max"], ["agg_strategy must be one of", "'max'"]),
        (["--verifier", "trust"], ["verifier must be one of", "'trust'"]),
        (["--task", "poems"], ["task must be one of", "'poems'"]),
        (["--split", "exam"], ["split must be one of", "'exam'"]),
        (["--limit", "0"], ["limit", "got 0"]),
        (["--temperature", "-1"], ["temperature", "got -1.0"]),
        (["--temperature", "nan"], ["temperature", "got nan"]),
        (["--temperature", "1e60"], ["temperature", "got 1e+60"]),
        (["--top-p", "0"], ["top_p", "got 0.0"]),
        (["--top-p", "1e-60"], ["top_p", "got 1e-60"]),
        (["--top-k", "99999999999"], ["top_k", "got 99999999999"]),
        (["--system-prompt", "\udcff"], ["not valid Unicode"]),
        (["--top-k", "-1"], ["top_k", "got -1"]),
        (["--min-p", "2"], ["min_p", "got 2.0"]),
        (["--max-tokens", "0"], ["max_tokens", "got 0"]),
        (["--device", "abacus"], ["device", "'abacus'"]),
        (["--dtype", "float7"], ["dtype must be one of", "'float7'"]),
        (["--num-blocks", "0"], ["block", "got 0"]),
        (["--policy", "nowhere"], ["no checkpoint folder", "'nowhere'"]),
        (["--prm", "nowhere"], ["no checkpoint folder", "'nowhere'"]),
        (["--speed", "9"], ["--speed"]),
        (["nowhere.jsonl"], ["cannot read problems from nowhere.jsonl"]),
    ],
    ids=lambda part: " ".join(part) if part[0].startswith("--") else "",
)
def test_options(ttc, models, tmp_path, arguments, parts):
    assert_refused(ttc(*small_search(models, tmp_path / "x"), *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"question": "b4?"}', ["no field 'problem'", "question"]),
        ('{"problem": "b4?"', ["not JSON", '{"problem": "b4?"']),
        ('{"problem": 7}', ["'problem' must be a text", "got 7"]),
        ('{"problem": "  "}', ["'problem' must be a text", "got '  '"]),
        ('{"problem": "b4?", "answer": [2]}', ["'answer' must be", "got [2]"]),
        ('{"problem": "b4?", "id": []}', ["'id' must be", "got []"]),
        ('{"problem": "b4?", "id": 0}', ["the id '0' is taken by", "line 1"]),
        ('{"problem": "\\ud800"}', ["not valid Unicode", "ud800"]),
        ('["b4?"]', ["not a JSON object", "['b4?']"]),
        ("[" * 100_000, ["nested too deep", "[[["]),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_searched(ttc, models, tmp_path, line, parts):
    file = tmp_path / "problems.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n")
    outcome = ttc(*small_search(models, tmp_path / "x"), file)
    assert_refused(outcome, f"{file}, line 3: ", *parts)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_not_text_or_empty(ttc, models, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_bytes(b"\xff\xfe\x00")
    assert_refused(ttc(*small_search(models, tmp_path / "x"), file), f"{file}, line 1: not UTF-8")
    file.write_bytes(b"\n\n")
    assert_refused(ttc(*small_search(models, tmp_path / "x"), file), f"{file} holds no problem")


def test_a_line_of_a_hundred_megabytes_is_not_read(ttc, models, tmp_path):
    file = tmp_path / "problems.jsonl"
    with open(file, "wb") as long:
        long.write(b'{"problem": "b4?"}\n{"problem": "')
        long.truncate(100 << 20)  # zeros, which need no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(ttc(*small_search(models, tmp_path / "x"), file), f"{file}, line 2 is longer than", '{"problem"')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 90 << 10  # KiB


def test_a_text_that_no_context_holds_is_refused_before_it_is_tokenized(ttc, models, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text(f"{GOOD}\n" + json.dumps({"problem": "b4?" + ";b4?" * 2_250_000}) + "\n")
    start = time.process_time()
    outcome = ttc(*small_search(models, tmp_path / "x"), file)
    assert_refused(outcome, f"{file}, line 2: a text of 9000004 characters is more than", "b4?;b4?")
    assert time.process_time() - start < 5  # the tokenizer alone would take longer, and a gigabyte


def test_a_prompt_over_the_context(ttc, models, tmp_path):
    policy = tiny_policy(tmp_path / "short", context=32)
    file = tmp_path / "problems.jsonl"
    file.write_text(f"{GOOD}\n" + json.dumps({"problem": "1" + ";+1" * 20}) + "\n")
    arguments = small_search(models, tmp_path / "x")
    outcome = ttc(*arguments, "--policy", policy, file)
    assert_refused(outcome, f"{file}, line 2: the prompt has 62 tokens", "holds 32")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("part", ["policy", "prm"])
def test_a_damaged_checkpoint(ttc, models, tmp_path, part, name):
    folder = tmp_path / part
    shutil.copytree(getattr(models, part), folder)
    content = (folder / name).read_bytes()
    arguments = [*small_search(models, tmp_path / "x"), f"--{part}", folder]
    (folder / name).write_bytes(content[: len(content) // 2])
    assert_refused(ttc(*arguments), str(folder))
    (folder / name).unlink()
    assert_refused(ttc(*arguments), str(folder), name)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_damaged_trunk_head(ttc, models, tmp_path):
    folder = tmp_path / "head"
    shutil.copytree(models.trunk_head, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    arguments = small_search(models, tmp_path / "x", "trunk")
    assert_refused(ttc(*arguments, "--trunk-head", folder), str(folder))


def test_models_in_each_others_place(ttc, models, tmp_path):
    arguments = small_search(models, tmp_path / "x")
    assert_refused(ttc(*arguments, "--prm", models.policy), str(models.policy))
    assert_refused(ttc(*arguments, "--policy", models.prm), str(models.prm))


def test_a_verifier_that_nobody_named(ttc, models, tmp_path):
    outcome = ttc(*small_search(models, tmp_path / "x", verifier=None))
    assert_refused(outcome, "--verifier prm", "needs --prm", str(models.policy))


def test_results_that_cannot_be_written(ttc, models, tmp_path):
    assert_refused(ttc(*small_search(models, tmp_path)), str(tmp_path), "folder")
    (tmp_path / "file").write_text("")
    assert_refused(ttc(*small_search(models, tmp_path / "file" / "rows.jsonl")), str(tmp_path / "file"))


def test_a_full_disk_names_the_file(ttc, models, tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert_refused(ttc(*small_search(models, tmp_path / "x")), f"{tmp_path / 'x'}.ledger: No space left on device")


def test_unknown_command(ttc):
    assert_refused(ttc("teleport"), "'teleport'")


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_results_do_not_replace_what_is_read(ttc, models, tmp_path, link):
    file = tmp_path / "problems.jsonl"
    file.write_text(GOOD + "\n")
    out = file if link is None else tmp_path / "link"
    if link is not None:
        link(file, out)
    assert_refused(ttc(*small_search(models, out), file, "--overwrite"), f"{out} is the file {file}")
    assert file.read_text() == GOOD + "\n"
    assert_refused(ttc("search", "--out", ""), "results go to a file, '' is no name")
