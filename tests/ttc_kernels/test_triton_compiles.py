"""Every Triton kernel compiles for NVIDIA GPUs, down to ptxas, on a machine that has none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttc_kernels

ROOT = Path(__file__).resolve().parents[2]
MAX_SHARED = 99 * 1024  # bytes a block may have on the smallest GPU of sm_80 and newer (sm_86)
MAX_SPILLED = 512  # bytes a thread; only attention with heads of 256 comes near it


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_and_fit(capability, tmp_path):
    """In a process of its own, as this one may have the interpreter on; with a cache of its own, so nothing is old."""
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-m", "tests.ttc_kernels.compile_triton", str(capability)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["op"] for kernel in kernels} == set(ttc_kernels.OPS) - {"decoder"}
    for kernel in kernels:
        assert kernel["gpu"] == f"sm_{capability}"
        assert kernel["shared"] <= MAX_SHARED, kernel
        assert kernel["spilled"] <= MAX_SPILLED, kernel
        assert 0 < kernel["registers"] <= 255, kernel
        # The compiler has put loads before the wait that stood before them in the source (triton issue 11905).
        assert kernel["overlaps"] == (kernel["first_wait"] is not None), kernel
        assert not kernel["overlaps"] or kernel["first_wait"] < kernel["first_access"], kernel
    assert any(kernel["overlaps"] for kernel in kernels) == (capability >= 90)
