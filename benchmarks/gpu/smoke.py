"""Runs the smallest cases of every kernel on the GPU once: something for compute-sanitizer to watch.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 python -m benchmarks.gpu.smoke
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.kernels.measure import IMPLS, describe
from benchmarks.kernels.ops import OPS, Op
from engine.commands import run_command
from engine.model import resolve_device
from ttc_kernels.cuda import CUDA_OPS

NUM_CASES = 4  # of an op: kernels that watch every access are slow


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where an op has no kernel that ran, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.smoke")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="cpu: a rehearsal")
    return run_command(partial(run, parser.parse_args(arguments).device))


def run(device: str) -> int:
    """Runs every op that a GPU has, and prints by which implementations; returns the exit status."""
    resolve_device(device)
    status = 0
    for op in OPS.values():
        if "cuda" in op.devices:
            ran = run_op(op, device)
            missing = expected(op.name, device) - set(ran)
            print(f"{op.name}: {', '.join(ran)}{f'; NO CASE BY {sorted(missing)}' if missing else ''}")
            status = 1 if missing else status
    return status


def expected(name: str, device: str) -> set[str]:
    """The implementations of an op that take some of its small cases."""
    if name not in CUDA_OPS or (device == "cpu" and name == "tree_attention"):  # a CPU's caches lie otherwise
        return {"triton"}
    return {"triton", "cuda"}


def run_op(op: Op, device: str) -> list[str]:
    """Runs the smallest cases; the implementations that took one, a name for each case."""
    ran = []
    cases, dtype = op.tiny(), torch.bfloat16 if device == "cuda" else torch.float16
    for case in [cases[i * len(cases) // NUM_CASES] for i in range(NUM_CASES)]:
        if hasattr(case, "dtype"):
            case = dataclasses.replace(case, dtype=dtype)
        for impl in IMPLS["cuda"]:
            try:
                op.bind(case, impl, op.inputs(case, device))()
            except ValueError as refusal:
                print(f"{op.name}, {impl} refused {describe(case)}: {refusal}")
            else:
                ran.append(impl)
    if device == "cuda":
        torch.cuda.synchronize()
    return ran


if __name__ == "__main__":
    sys.exit(main())
