"""Compiles the ops' Triton kernels for NVIDIA GPUs, ahead of time and without one; a process of its own.

    python -m tests.ttc_kernels.compile_triton 80 90

The launches are the ops' own, over tensors on a CPU: a fake driver names the GPU, and the kernels compile in full, down
to ptxas, but do not run. Prints one JSON line a kernel: GPU, case, name, shared memory, registers, spills, seconds.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ttc_kernels.copy_blocks.cases import Case as CopyCase
from ttc_kernels.fused_linear import Scratch, tiles_of
from ttc_kernels.fused_linear.cases import Case as LinearCase
from ttc_kernels.fused_linear.cases import layer
from ttc_kernels.rms_norm.cases import Case as NormCase
from ttc_kernels.rope_store_kv.cases import Case as RopeCase
from ttc_kernels.sample.cases import Case as SampleCase
from ttc_kernels.step_score.cases import Case as ScoreCase
from ttc_kernels.swiglu.cases import Case as SwigluCase
from ttc_kernels.tree_attention.cases import Case as AttentionCase

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TREE = ((1, 40), (3, 5))
# The home model's sizes and a 1.5B model's, each type at least once; head sizes between powers of two and at the end.
CASES = {
    "tree_attention": [
        AttentionCase(12, 2, 128, BF16, TREE),
        AttentionCase(8, 2, 80, FP16, TREE),
        AttentionCase(16, 1, 256, BF16, TREE),
        AttentionCase(6, 2, 16, FP32, TREE),
        AttentionCase(16, 1, 256, FP32, TREE),
    ],
    "rope_store_kv": [
        RopeCase(5, 12, 2, 128, BF16, has_bias=True),
        RopeCase(5, 4, 1, 80, FP16),
        RopeCase(5, 6, 2, 16, FP32),
    ],
    "copy_blocks": [CopyCase(2, 2, 8, 2, 128, BF16), CopyCase(2, 2, 8, 2, 16, FP32)],
    "rms_norm": [NormCase(4, 1536, BF16, True), NormCase(4, 8192, FP16, True), NormCase(4, 96, FP32, False)],
    "swiglu": [SwigluCase(4, 8960, BF16), SwigluCase(4, 85, FP16), SwigluCase(4, 256, FP32)],
    "fused_linear": [
        layer(16, FP16)[0],
        layer(16, BF16)[2],
        *layer(64, BF16)[2:],
        LinearCase(40, 96, 256, FP32, has_norm=True, is_gated=True),
    ],
    "sample": [SampleCase(2, 151_936)],
    "step_score": [
        ScoreCase(9, 5, 1536, 2, BF16, True, 4),
        ScoreCase(9, 5, 1536, 2, FP16, True, 4),
        ScoreCase(9, 5, 96, 1, FP32, False, 4),
    ],
}
# The slowest to compile, for one GPU alone; for both are the widest heads and the most rows, which are the nearest to
# what fits. On sm_90 tests/gpu runs the kernels themselves.
ONLY_FOR = {AttentionCase(8, 2, 80, FP16, TREE): 90} | {
    case: 80
    for case in (*CASES["tree_attention"], *CASES["fused_linear"])
    if case.dtype is FP32 or getattr(case, "head_dim", None) == 128 or getattr(case, "num_rows", 64) < 64
}


class FakeDriver:
    """What the compiler asks of a driver."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def launches(op: str, case) -> list[tuple[JITFunction, tuple, dict]]:
    """The launches that the op's Triton code makes for a case."""
    recorded = []

    def record(kernel: JITFunction, *args, grid, warmup, **kwargs) -> None:
        assert all(size > 0 for size in grid), grid
        recorded.append((kernel, args, kwargs))

    inputs = case.inputs()
    if "k_cache" in inputs:
        inputs["k_cache"] = inputs["k_cache"].contiguous()  # as kv_cache.allocate lays it out on a GPU
    if op == "tree_attention":
        inputs["out"] = torch.empty_like(inputs["q"], memory_format=torch.contiguous_format)
    if op == "step_score" and case.dtype is FP16:
        inputs["mask"] = torch.ones(case.num_scores, dtype=torch.bool)
    if op == "rms_norm":
        inputs["out"] = torch.empty_like(inputs["x"])
    if op == "fused_linear":
        inputs["out"] = torch.empty(case.num_rows, case.num_out, dtype=case.dtype)
        inputs["tiles"] = tiles_of(case.num_rows, case.num_out, case.width, case.dtype.itemsize, case.is_gated)
        inputs["scratch"] = Scratch([inputs["tiles"]], torch.device("cpu"))
    if op == "swiglu":
        inputs["out"] = torch.empty(case.num_rows, case.size, dtype=case.dtype)
    run, JITFunction.run = JITFunction.run, record
    try:
        getattr(importlib.import_module(f"ttc_kernels.{op}.triton"), op)(**inputs)
    finally:
        JITFunction.run = run
    return recorded


def resources(cubin: bytes) -> dict[str, int]:
    """What cuobjdump of Triton's own wheel says of a kernel: registers a thread, bytes spilled a thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told.stdout)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def first_access(ptx: str) -> int:
    """How many lines come before the first that reads or writes the GPU's memory; prefetches change nothing."""
    lines = ptx.splitlines()
    return next(i for i, line in enumerate(lines) if re.search(r"\b((ld|st|red|atom)\.global|cp\.async\.c)", line))


def first_wait(ptx: str) -> int | None:
    """How many lines come before the kernel waits for the one before it; None where it does not."""
    return next((i for i, line in enumerate(ptx.splitlines()) if "griddepcontrol.wait" in line), None)


def compiled(capability: int) -> Iterator[dict]:
    triton.runtime.driver.set_active(FakeDriver(capability))
    for op, cases in CASES.items():
        for case in (case for case in cases if ONLY_FOR.get(case, capability) == capability):
            for kernel, args, kwargs in launches(op, case):
                if capability >= 90 and "CAN_OVERLAP" in kwargs:  # which a tensor on a CPU does not ask for
                    kwargs |= {"CAN_OVERLAP": True, "launch_pdl": True}
                start = time.perf_counter()
                done = kernel.run(*args, grid=(1,), warmup=True, **kwargs)
                yield {
                    "gpu": f"sm_{capability}",
                    "op": op,
                    "case": str(case),
                    "kernel": done.metadata.name,
                    "warps": done.metadata.num_warps,
                    "shared": done.metadata.shared,
                    "overlaps": done.metadata.launch_pdl,
                    "first_access": first_access(done.asm["ptx"]),
                    "first_wait": first_wait(done.asm["ptx"]),
                    **resources(done.asm["cubin"]),
                    "seconds": round(time.perf_counter() - start, 2),
                }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for line in compiled(int(argument)):
            print(json.dumps(line), flush=True)
