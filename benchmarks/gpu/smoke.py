"""Runs the smallest cases of every kernel on the GPU once: something for compute-sanitizer to watch.

compute-sanitizer --error-exitcode 1 python -m benchmarks.gpu.smoke
"""

from __future__ import annotations

import dataclasses
import importlib
import sys

import torch

from benchmarks.kernels.measure import IMPLS, describe
from benchmarks.kernels.ops import OPS, Op
from engine.commands import run_command
from engine.model import resolve_device

NUM_CASES = 4  # of an op: kernels that watch every access are slow


def main() -> int:
    """Returns the exit status: 1 where an op has no kernel that ran, 2 without a GPU."""
    return run_command(run)


def run() -> int:
    """Runs every op that a GPU has, and prints by which implementations; returns the exit status."""
    resolve_device("cuda")
    status = 0
    for op in OPS.values():
        if "cuda" in op.devices:
            ran = run_op(op)
            print(f"{op.name}: {', '.join(ran) or 'NOTHING RAN'}")
            status = status if ran else 1
    return status


def run_op(op: Op) -> list[str]:
    """Runs the smallest cases; the implementations that took one, a name for each case."""
    ran = []
    cases = importlib.import_module(f"ttc_kernels.{op.name}.cases").tiny()
    for case in [cases[i * len(cases) // NUM_CASES] for i in range(NUM_CASES)]:
        if hasattr(case, "dtype"):
            case = dataclasses.replace(case, dtype=torch.bfloat16)
        for impl in IMPLS["cuda"]:
            try:
                op.bind(case, impl, op.inputs(case, "cuda"))()
            except ValueError as refusal:
                print(f"{op.name}, {impl} refused {describe(case)}: {refusal}")
            else:
                ran.append(impl)
    torch.cuda.synchronize()
    return ran


if __name__ == "__main__":
    sys.exit(main())
