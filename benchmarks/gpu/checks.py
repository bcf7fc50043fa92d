"""What a GPU is asked in the two calls of benchmarks/gpu.sh: each check by itself, with the seconds that it may take.

A check raises where something is wrong, and returns what it measured, as JSON values. On a CPU (`Bench.device` "cpu", a
rehearsal) it does the same with small inputs: Triton's kernels through its interpreter, CUDA's through the emulator.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.gpu import decode_steps, search
from benchmarks.kernels import trees
from benchmarks.kernels.measure import Session, describe
from benchmarks.kernels.ops import OPS, Op
from benchmarks.random_models import save_random
from engine.errors import UserError
from engine.model import HOME, resolve_dtype
from ttc_kernels.cuda import CUDA_OPS
from ttc_kernels.fused_linear import cases as linear_cases
from ttc_kernels.fused_linear.cases import Case as LinearCase
from ttc_kernels.sample.cases import Case as SampleCase
from ttc_kernels.sample.cases import HeadCase

ROOT = Path(__file__).resolve().parents[2]
Figures = dict[str, object]

FILTERED = ({"top_k": 20}, {"top_p": 0.9}, {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.02})


@dataclass
class Bench:
    """Where the checks run, and what several of them use."""

    device: str
    folder: Path
    """For logs."""
    seconds_left: Callable[[], float] = lambda: 600.0
    """Until the call must be over."""

    @property
    def is_rehearsal(self) -> bool:
        return self.device == "cpu"

    @cached_property
    def session(self) -> Session:
        return Session.on(self.device)

    @cached_property
    def policy(self) -> Path:
        """A model in the shape of Qwen2.5-1.5B; in a rehearsal the home policy."""
        if self.is_rehearsal:
            return HOME / "policy"
        self._models = tempfile.TemporaryDirectory()  # some gigabytes, which are no result
        return save_random("qwen2.5-1.5b", Path(self._models.name))

    def program(self, *command: str, **environment: str) -> str:
        """What a program prints. Raises AssertionError where it fails, UserError where it is missing or too slow."""
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=self.seconds_left(),
            )
        except FileNotFoundError:
            raise UserError(f"{command[0]} is not on PATH") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"{command[0]} was stopped when the time of the call was over") from None
        if done.returncode:
            text = last_lines(done.stdout + done.stderr, 8)
            raise AssertionError(f"{command[0]}: exit status {done.returncode}: {text}")
        return done.stdout


@dataclass(frozen=True)
class Check:
    """One thing to be found out."""

    name: str
    seconds: float
    """What it takes at most on an H200; it is not begun where less is left."""
    run: Callable[[Bench], Figures]


def cuda_kernels(bench: Bench) -> Figures:
    """The hand-written kernels against their references in float64; each takes some of the cases."""
    taken = {name: _taken(OPS[name], "cuda", bench, torch.bfloat16) for name in CUDA_OPS}
    if missing := [name for name, cases in taken.items() if not cases]:
        raise AssertionError(f"the CUDA kernels of {', '.join(missing)} took none of their cases")
    return {name: len(cases) for name, cases in taken.items()}


def triton_kernels(bench: Bench) -> Figures:
    """Triton's kernels on three cases of every op, the ops side by side, as compiling takes the time."""
    dtype = torch.float16 if bench.is_rehearsal else torch.bfloat16  # which the interpreter computes wrongly
    ops = [op for op in OPS.values() if "cuda" in op.devices]
    with ThreadPoolExecutor(1 if bench.is_rehearsal else len(ops)) as pool:
        taken = list(pool.map(lambda op: _taken(op, "triton", bench, dtype, most=3), ops))
    if missing := [op.name for op, cases in zip(ops, taken, strict=True) if not cases]:
        raise AssertionError(f"Triton's kernels of {', '.join(missing)} took none of their cases")
    return {op.name: len(cases) for op, cases in zip(ops, taken, strict=True)}


def _taken(op: Op, impl: str, bench: Bench, dtype: torch.dtype, most: int | None = None) -> list[str]:
    """Checks an op's tiny cases, `most` of them spread evenly; the descriptions of those that it does not refuse."""
    cases = op.tiny()
    if hasattr(cases[0], "dtype"):
        cases = [dataclasses.replace(case, dtype=dtype) for case in cases if case.dtype is torch.float32]
    most = most or len(cases)
    taken: list[str] = []
    for case in (cases[i * len(cases) // most] for i in range(most)):
        inputs = op.inputs(case, bench.device)
        if bench.is_rehearsal:
            inputs = {name: x.contiguous() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        if bench.is_rehearsal and len(taken) == 2:
            break
        try:
            op.check(case, impl, inputs)
        except ValueError:
            continue
        taken.append(describe(case))
    return taken


def engine_tests(bench: Bench) -> Figures:
    """tests/gpu/test_engine.py, in this process: graphs against single launches, both against the CPU."""
    import pytest

    log = bench.folder / "engine_tests.txt"
    with log.open("w") as file, redirect_stdout(file):
        folder = ROOT / "tests" / "gpu"  # by itself, so that its conftest.py decides whether there is a GPU to test
        status = pytest.main(
            ["-q", "-x", "-p", "no:cacheprovider", f"--ignore={folder / 'test_kernels.py'}", str(folder)]
        )
    if status != 0 and not (bench.is_rehearsal and status == pytest.ExitCode.NO_TESTS_COLLECTED):
        raise AssertionError(f"pytest exited with {int(status)}: {last_lines(log.read_text())}")
    return {"last_line": last_lines(log.read_text(), 1)}


def greedy_search(bench: Bench) -> Figures:
    """The home models' greedy answers, token for token those of the CPU."""
    found = search.compare_on(bench.device, 2 if bench.is_rehearsal else 32)
    if wrong := [each for each in found["differences"] if not each["is_allowed"]]:
        raise AssertionError(f"{len(wrong)} answers differ where no two tokens are nearly equal: {wrong[:3]}")
    return found


def memcheck(bench: Bench) -> Figures:
    return _sanitized("memcheck", bench)


def racecheck(bench: Bench) -> Figures:
    return _sanitized("racecheck", bench)


def _sanitized(tool: str, bench: Bench) -> Figures:
    """compute-sanitizer over small cases of every kernel; without torch's cache, which would hide what lies beside."""
    watched = [sys.executable, "-m", "benchmarks.gpu.smoke", "--device", bench.device]
    if bench.is_rehearsal and tool == "racecheck":  # memcheck runs the same program
        return {"printed": ""}
    by = [] if bench.is_rehearsal else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    printed = bench.program(*by, *watched, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return {"printed": last_lines(printed, 20)}


def decode_plain(bench: Bench) -> Figures:
    """With the products that the table chooses, and with torch's alone."""
    return _decode_steps(bench, is_scored=False, products=("auto", "torch"))


def decode_scored(bench: Bench) -> Figures:
    return _decode_steps(bench, is_scored=True)


def _decode_steps(bench: Bench, *, is_scored: bool, products: Sequence[str] = ("auto",)) -> Figures:
    """A decode step at batch 1, 64 and 256 against its floor."""
    dtype = "float32" if bench.is_rehearsal else "bfloat16"
    batches, num_prompt, num_steps = ((1, 3), 20, 4) if bench.is_rehearsal else ((1, 64, 256), 512, 64)
    sizes = {"is_scored": is_scored, "num_prompt": num_prompt, "num_steps": num_steps}
    rates = decode_steps.Rates.of(bench.device, resolve_dtype(dtype, bench.device))
    rows = [
        row
        for each in products
        for row in decode_steps.rows_of(bench.policy, bench.device, dtype, batches, products=each, rates=rates, **sizes)
    ]
    return {"dtype": dtype, "rows": [asdict(row) for row in rows]}


def five_trees(bench: Bench) -> Figures:
    return _trees(bench, trees.FIVE)


def twelve_trees(bench: Bench) -> Figures:
    return _trees(bench, trees.TWELVE)


def _trees(bench: Bench, names: Sequence[tuple[str, tuple[int, int]]]) -> Figures:
    """Tree attention checked and timed against its peers."""
    cases = trees.chosen(names)
    if bench.is_rehearsal:
        cases = [trees.with_heads(trees.regular("beam 4 x (32 + 16)", (1, 4), (32, 16)), (12, 2), torch.bfloat16)]
    return _measured(bench, [(OPS["tree_attention"], case) for case in cases])


def products(bench: Bench) -> Figures:
    """The products of a layer at 1, 16 and 64 rows, against torch's between launches of the other ops."""
    op = OPS["fused_linear"]
    if bench.is_rehearsal:  # a CPU has no kernel to be timed
        case = LinearCase(3, 40, 300, torch.float16, has_norm=True, is_gated=True)
        op.check(case, "triton", op.inputs(case, bench.device))
        return {"copy_gbps": 0.0, "rows": []}
    return _measured(bench, [(op, case) for case in linear_cases.full()])


def sampling(bench: Bench) -> Figures:
    """Draws over a vocabulary of 151,936 with filters, and the fused LM head without."""
    rows, vocab = (4, 300) if bench.is_rehearsal else (64, 151_936)
    filtered = [(OPS["sample"], SampleCase(rows, vocab, **each)) for each in FILTERED]
    size, dtype = (64, torch.float32) if bench.is_rehearsal else (1536, torch.bfloat16)
    return _measured(bench, [*filtered, (OPS["sample_head"], HeadCase(rows, size, vocab, dtype))])


def _measured(bench: Bench, pairs: Sequence[tuple[Op, object]]) -> Figures:
    """Rows of the kernels' benchmark. Raises AssertionError for a red check, with the rows that there are."""
    session = bench.session
    first_row, first_failure = len(session.rows), len(session.failures)
    for op, case in pairs:
        session.measure(op, case)
    if failures := session.failures[first_failure:]:
        raise AssertionError("; ".join(failures)[:2000])
    return {"copy_gbps": session.copy_gbps, "rows": session.rows[first_row:]}


def profile(bench: Bench) -> Figures:
    """What ncu says of one launch of tree attention, if it is there."""
    metrics = ("dram__bytes_read.sum", "sm__inst_executed.sum", "sm__throughput.avg.pct_of_peak_sustained_elapsed")
    watched = [sys.executable, "-m", "benchmarks.gpu.smoke", "--device", bench.device]
    if bench.is_rehearsal:  # memcheck runs the same program
        return {"report": ""}
    by = ["ncu", "--metrics", ",".join(metrics), "--kernel-name", "regex:tree_attention", "--launch-count", "2"]
    printed = bench.program(*by, *watched)
    if missing := [name for name in metrics if name not in printed]:
        raise AssertionError(f"ncu gave no {', '.join(missing)}: {last_lines(printed, 8)}")
    return {"report": printed[-6000:]}


CALLS = {  # seconds of a call, and its checks: first what else nothing would be worth, then what is most wanted
    1: (
        270.0,
        (
            Check("cuda_kernels", 15, cuda_kernels),
            Check("triton_kernels", 45, triton_kernels),
            Check("engine_tests", 60, engine_tests),
            Check("greedy_search", 20, greedy_search),
            Check("decode_plain", 45, decode_plain),
            Check("five_trees", 35, five_trees),
            Check("memcheck", 45, memcheck),
        ),
    ),
    2: (
        300.0,
        (
            Check("twelve_trees", 90, twelve_trees),
            Check("decode_scored", 40, decode_scored),
            Check("products", 30, products),
            Check("sampling", 35, sampling),
            Check("racecheck", 60, racecheck),
            Check("profile", 40, profile),
        ),
    ),
}


def last_lines(text: str, num_lines: int = 4) -> str:
    """The end of a text, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-num_lines:])[-800:] or "nothing was printed"
