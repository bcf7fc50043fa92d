"""Which implementation is taken: the table, its thresholds, and what an explicit request meets."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ttc_kernels
from ttc_kernels import cuda
from ttc_kernels.choice import CUDA_OPS, IMPLEMENTATIONS, NOT_NATIVE, TABLE, Choice, chooser
from ttc_kernels.sample.cuda import MAX_VOCAB

ROOT = Path(__file__).resolve().parents[2]
OPS = sorted(set(ttc_kernels.OPS) - {"decoder"})  # which packs for a CPU
CHOICES = [*OPS, "sample_head"]  # which is the folder of sample's second function


@dataclass
class OnGpu:
    """What the table asks of a tensor, where there is no GPU."""

    num_rows: int = 1
    is_cpu: bool = False
    device: torch.device = torch.device("cuda:0")  # noqa: RUF009  (immutable)
    dtype: torch.dtype = torch.float32
    size: int = 32

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.size

    def __len__(self) -> int:
        return self.num_rows


def test_the_table_knows_every_op_on_both_devices():
    first = [(row.op, row.device) for row in TABLE if row.implementation != "cuda" and row.min_rows == 0]
    assert sorted(first) == sorted((op, device) for op in CHOICES for device in ("cpu", "cuda"))
    assert {row.op for row in TABLE if row.implementation == "cuda"} == set(CUDA_OPS)
    assert all(row.implementation in IMPLEMENTATIONS for row in TABLE)
    assert all(row.set_by for row in TABLE)
    for row in TABLE:
        if row.device == "cpu":
            assert row.implementation == ("reference" if row.op in NOT_NATIVE else "native")


@pytest.mark.parametrize("op", CHOICES)
def test_choices(op):
    choose = chooser(op)
    lacking = {name for name, ops in (("cuda", set(CHOICES) - set(CUDA_OPS)), ("native", NOT_NATIVE)) if op in ops}
    assert choose("auto", torch.zeros(1)) == ("reference" if "native" in lacking else "native")
    for impl in set(IMPLEMENTATIONS) - lacking:
        assert choose(impl, torch.zeros(1)) == choose(impl, OnGpu()) == impl
    for impl in lacking:
        with pytest.raises(ValueError, match=rf"{op}: impl must be 'auto', .* got '{impl}'"):
            choose(impl, OnGpu())
    if op not in CUDA_OPS:
        assert choose("auto", OnGpu(dtype=torch.bfloat16, size=128)) == "triton"
    with pytest.raises(ValueError, match=rf"{op}: impl must be .* got 'fast'"):
        choose("fast", torch.zeros(1))
    with pytest.raises(ValueError, match=rf"{op}: impl 'auto' knows .* got a tensor on meta"):
        choose("auto", torch.zeros(1, device="meta"))


def test_cuda_is_chosen_for_what_it_takes_where_it_was_built(monkeypatch, tmp_path):
    half = OnGpu(dtype=torch.bfloat16, size=128)
    built, missing = tmp_path / "built.so", tmp_path / "missing.so"
    built.touch()
    for library, capability, chosen in (
        (built, (8, 0), "cuda"),
        (built, (12, 0), "cuda"),
        (built, (7, 5), "triton"),
        (missing, (9, 0), "triton"),
    ):
        cuda.runs_on.cache_clear()
        monkeypatch.setattr(cuda, "LIBRARY", library)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        others = [op for op in CUDA_OPS if op != "sample"]
        assert [chooser(op)("auto", half) for op in others] == [chosen] * len(others)
        # From where blocks can share a row, to what the kernel takes.
        for size, by_size in ((4095, "triton"), (4096, chosen), (MAX_VOCAB, chosen), (MAX_VOCAB + 1, "triton")):
            assert chooser("sample")("auto", OnGpu(size=size)) == by_size
        for other in (OnGpu(dtype=torch.float32, size=128), OnGpu(dtype=torch.float16, size=96)):
            assert chooser("tree_attention")("auto", other) == "triton"
        assert chooser("sample_head")("auto", OnGpu()) == "triton"
        odd = OnGpu(dtype=torch.bfloat16, size=100)  # the kernel loads eight values at a time
        assert chooser("sample_head")("auto", odd) == "triton"
    cuda.runs_on.cache_clear()


def test_a_threshold_changes_the_choice():
    on_cpu = (Choice("cpu", "op", "triton", "a run", min_rows=2), Choice("cpu", "op", "native", "a run"))
    assert [chooser("op", on_cpu)("auto", torch.zeros(n, 4)) for n in (1, 2)] == ["native", "triton"]
    rows = (Choice("cuda", "op", "triton", "a run", min_rows=8), Choice("cuda", "op", "native", "a run"))
    for table in (rows, rows[::-1]):
        chosen = [chooser("op", table)("auto", OnGpu(num_rows)) for num_rows in (0, 7, 8, 9)]
        assert chosen == ["native", "native", "triton", "triton"]


SCRIPT = """
import importlib, sys, torch
import ttc_kernels

def outcomes(impl):
    for op in sorted(set(ttc_kernels.OPS) - {"decoder"}):
        case = [case for case in importlib.import_module(f"ttc_kernels.{op}.cases").tiny()][0]
        try:
            getattr(importlib.import_module(f"ttc_kernels.{op}"), op)(**case.inputs(), impl=impl)
            print(op, impl, "ran")
        except ValueError as error:
            print(op, impl, error)

outcomes("auto")
print("triton" in sys.modules)
sys.modules["triton"] = None  # as if it were not installed
outcomes("triton")
del sys.modules["triton"]
outcomes("triton")
"""


def test_triton_is_imported_only_when_asked_for_and_then_runs_or_raises():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[: len(OPS) + 1] == [*(f"{op} auto ran" for op in OPS), "False"]
    missing, on_cpu = lines[len(OPS) + 1 : 2 * len(OPS) + 1], lines[2 * len(OPS) + 1 :]
    for op, line in zip(OPS, missing, strict=True):
        assert line.startswith(f"{op} triton {op}: impl 'triton' needs the package triton, got"), line
    for op, line in zip(OPS, on_cpu, strict=True):
        assert line.startswith(f"{op} triton {op}: impl 'triton' takes tensors on the current CUDA device"), line
        assert line.endswith("got a tensor on cpu"), line
