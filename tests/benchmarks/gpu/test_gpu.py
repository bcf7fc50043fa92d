"""The GPU's two calls as far as a machine without one can run them, and the comparison of searches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.gpu.__main__ as main_module
from benchmarks.gpu.__main__ import Spent, main, run_checks
from benchmarks.gpu.checks import CALLS, ROOT, Bench, Check
from benchmarks.gpu.search import MAX_GAP, compare
from benchmarks.kernels import trees
from engine import Engine
from engine.tasks import take_problems
from tests.tiny import tiny_policy, tiny_prm
from ttc_kernels import cuda


def check(name: str, seconds: float, run=lambda bench: {"found": 1}) -> Check:
    return Check(name, seconds, run)


def broken(bench: Bench) -> dict:
    raise AssertionError("3 of 4 values differ")


def crashed(bench: Bench) -> dict:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def run_all(checks: list[Check], limit: float, tmp_path: Path) -> tuple[list[dict], list[dict]]:
    """The rows, and the reports that were written on the way."""
    report, written = {"checks": []}, []
    write = lambda report: written.append(json.loads(json.dumps(report)))  # noqa: E731
    assert run_checks(checks, limit, Spent(None), Bench("cpu", tmp_path), report, write)
    return report["checks"], written


def test_every_check_reports_by_itself_as_it_ends(tmp_path: Path):
    checks = [check("good", 10), check("wrong", 10, broken), check("bug", 10, crashed), check("last", 10)]
    rows, written = run_all(checks, 100, tmp_path)
    assert [row["state"] for row in rows] == ["passed", "failed", "failed", "passed"]
    assert rows[0]["figures"] == {"found": 1}
    assert rows[1]["reason"] == "AssertionError: 3 of 4 values differ"
    assert "in crashed" in rows[2]["figures"]["traceback"]
    assert [len(report["checks"]) for report in written] == [1, 2, 3, 4]


def test_a_check_that_does_not_fit_is_not_begun_and_a_shorter_one_is(tmp_path: Path):
    rows, _ = run_all([check("long", 60), check("longer", 50), check("short", 30)], 100, tmp_path)
    assert [row["state"] for row in rows] == ["passed", "not begun", "passed"]
    assert rows[1]["reason"] == "40 s were left, it may take 50"


def test_a_lost_device_ends_the_process_and_the_next_one_goes_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(main_module, "device_answers", lambda device: False)
    report, bench = {"checks": []}, Bench("cpu", tmp_path)
    checks = [check("good", 10), check("bug", 10, crashed), check("last", 10)]
    assert not run_checks(checks, 100, Spent(None), bench, report, lambda report: None)
    assert [row["name"] for row in report["checks"]] == ["good", "bug"]
    assert run_checks(checks, 100, Spent(None), bench, report, lambda report: None)
    assert [row["name"] for row in report["checks"]] == ["good", "bug", "last"]


@pytest.mark.parametrize("call", CALLS)
def test_a_rehearsal_of_each_call(call: int, tmp_path: Path, emulated, monkeypatch):
    """Everything is run, on small inputs; with what each may take on a GPU, the call is over in time."""
    limit, checks = CALLS[call]
    assert sum(each.seconds for each in checks) <= limit <= 300
    monkeypatch.setenv("TTC_EMULATED_CUDA", str(emulated.path))
    cuda.library.cache_clear()
    assert main(["--call", str(call), "--out", str(tmp_path), "--rehearse"]) == 0
    cuda.library.cache_clear()
    report = json.loads((tmp_path / f"call-{call}.json").read_text())
    assert report["commit"]
    assert {row["name"]: (row["state"], row["reason"]) for row in report["checks"]} == {
        each.name: ("passed", "") for each in checks
    }


def test_a_program_that_fails_or_hangs_or_is_missing_says_so(tmp_path: Path):
    bench = Bench("cpu", tmp_path, lambda: 5.0)
    assert bench.program(sys.executable, "-c", "print(7)") == "7\n"
    with pytest.raises(AssertionError, match=r"exit status 3: no permission"):
        bench.program(sys.executable, "-c", "print('no permission'); raise SystemExit(3)")
    with pytest.raises(ValueError, match="a-program-that-nobody-has is not on PATH"):
        bench.program("a-program-that-nobody-has")
    with pytest.raises(ValueError, match="was stopped when the time of the call was over"):
        Bench("cpu", tmp_path, lambda: 0.5).program(sys.executable, "-c", "import time; time.sleep(60)")


def test_all_chosen_trees_are_known_and_different():
    found = trees.chosen(trees.TWELVE)
    assert len({trees.label(tree) for tree in found}) == 12
    assert trees.TWELVE[:5] == trees.FIVE


def checked(code: str, **device: str) -> str:
    """What a new process prints that runs `code`, and then whether Triton's kernels would be interpreted."""
    kept = {name: value for name, value in os.environ.items() if name not in ("TTC_DEVICE", "TRITON_INTERPRET")}
    code += "from tests.gpu.conftest import check_compiled\n"
    code += "try:\n    check_compiled()\nexcept ValueError:\n    print('interpreted')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=kept | device, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_tests_are_not_part_of_an_ordinary_run():
    code = "import pytest\nstatus = pytest.main(['--collect-only', '-qqq', '-p', 'no:cacheprovider', 'tests/gpu'])\n"
    assert checked(code + "print(status.name)\n").split()[-2:] == ["NO_TESTS_COLLECTED", "interpreted"]


def test_triton_is_compiled_where_a_gpu_is_asked_for():
    """The tests of a GPU would all pass on the interpreter, and show nothing."""
    assert checked("import tests.conftest\n", TTC_DEVICE="cuda") == ""


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
