"""The GPU's script as far as a machine without one can run it: its stages, and the comparison of searches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.search import MAX_GAP, compare
from benchmarks.gpu.stages import ROOT, Stage, run, stages
from engine import Engine
from engine.tasks import take_problems
from tests.tiny import tiny_policy, tiny_prm


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def test_every_stage_says_how_it_went(tmp_path: Path, capsys):
    (tmp_path / "old.json").write_text("{}")
    chosen = [
        Stage("good", script("print('fine')"), 30),
        Stage("bad", script("print('on the way'); raise SystemExit('it broke')"), 30),
        Stage("slow", script("import time; time.sleep(60)"), 5.0),
        Stage("absent", script(""), 30, needs="a-program-that-nobody-has"),
        Stage("silent", script(""), 30, result="old.json"),
    ]
    assert run(chosen, tmp_path) == 1
    report = {stage["name"]: stage for stage in json.loads((tmp_path / "stages.json").read_text())["stages"]}
    assert [name for name, stage in report.items() if stage["passed"]] == ["good"]
    assert report["good"]["reason"] == ""
    assert report["bad"]["reason"] == "exit status 1: on the way | it broke"
    assert report["slow"]["reason"].startswith("stopped after 5 s")
    assert report["absent"]["reason"] == "not started: a-program-that-nobody-has is not on PATH"
    assert report["silent"]["reason"].startswith("old.json was not written")
    assert "fine" in (tmp_path / "log.txt").read_text()
    assert "| bad | NO |" in (tmp_path / "table.md").read_text()
    assert "bad: FAILED, exit status 1: on the way | it broke" in capsys.readouterr().out


def test_all_stages_fit_their_time_and_write_different_files(tmp_path: Path):
    chosen = stages(tmp_path)
    assert [stage.name for stage in chosen] == [
        *("build", "tests", "engine", "search", "sanitizer", "decode_steps", "kernels", "equal_flops")
    ]
    results = [stage.result for stage in chosen if stage.result]
    assert len(set(results)) == len(results) == 4


def test_the_gpu_tests_are_not_part_of_an_ordinary_run():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    environment = {name: value for name, value in os.environ.items() if name != "TTC_DEVICE"}
    ordinary = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ordinary.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, ordinary.stdout


@pytest.mark.parametrize(("device", "is_interpreted"), [("cuda", False), ("cpu", True), (None, True)])
def test_triton_is_interpreted_only_where_no_gpu_is_asked_for(device: str | None, is_interpreted: bool):
    """The tests of a GPU would all pass on the interpreter, and show nothing."""
    kept = {name: value for name, value in os.environ.items() if name not in ("TTC_DEVICE", "TRITON_INTERPRET")}
    environment = kept if device is None else kept | {"TTC_DEVICE": device}
    code = "import tests.conftest\nfrom tests.gpu.conftest import check_compiled\n"
    code += "try:\n    check_compiled()\nexcept ValueError:\n    print(1)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n" if is_interpreted else ""), done.stderr


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[Engine]:
    folder = tmp_path_factory.mktemp("models")
    prm = tiny_prm(folder / "prm")
    policies = [tiny_policy(folder / str(seed), seed=seed) for seed in (0, 1)]
    return [Engine.load(policy, prm=prm) for policy in policies]


def test_the_same_engine_gives_the_same_tokens(engines: list[Engine]):
    problems = take_problems(engines[0].task, "test", 3)
    report = compare(engines[0], engines[0], problems)
    assert report["differences"] == []
    assert report["num_tokens"] > 3


def test_another_model_is_found_out_at_the_first_token_that_differs(engines: list[Engine]):
    problems = take_problems(engines[0].task, "test", 3)
    differences = compare(*engines, problems)["differences"]
    assert len(differences) == 3
    for problem, difference in zip(problems, differences, strict=True):
        assert difference["is_allowed"] == (difference["gap"] <= MAX_GAP)
        prompt = engines[0].policy.encode(problem.prompt)
        firsts = []
        for engine in engines:
            branch = engine.policy.open(prompt)
            firsts.append(int(engine.policy.next_logits([branch])[0].argmax()))
            branch.close()
        assert (difference["position"] == 0) == (firsts[0] != firsts[1])
    assert not all(difference["is_allowed"] for difference in differences)
