"""Runs the smallest cases of every kernel on the GPU once: something for compute-sanitizer to watch.

compute-sanitizer --error-exitcode 1 python -m benchmarks.gpu_smoke
"""

from __future__ import annotations

import dataclasses
import importlib
import sys

import torch

from benchmarks.clock import check_device
from benchmarks.kernels import IMPLS, describe
from benchmarks.ops import OPS

NUM_CASES = 4  # of an op: kernels that watch every access are slow


def main() -> int:
    """The exit status: 1 where an op has no kernel that ran."""
    try:
        check_device("cuda")
    except ValueError as error:
        print(f"error: {error}")
        return 1
    status = 0
    for op in OPS.values():
        if "cuda" not in op.devices:
            continue
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
        print(f"{op.name}: {', '.join(ran) or 'NOTHING RAN'}")
        status = status if ran else 1
    return status


if __name__ == "__main__":
    sys.exit(main())
