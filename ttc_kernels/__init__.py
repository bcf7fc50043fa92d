"""The ops: a folder each, with `api.py` (to call), `reference.py` (the definition), `cases.py` (inputs)."""

import ctypes
import os
from pathlib import Path

import torch  # first: it brings the OpenMP runtime that _native uses

OPS = (
    "tree_attention",
    "rope_store_kv",
    "copy_blocks",
    "rms_norm",
    "swiglu",
    "fused_linear",
    "sample",
    "step_score",
    "decoder",
)


def _share_openmp() -> None:
    """Make the symbols of torch's OpenMP runtime visible to _native, which brings none of its own."""
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split()[-1] for line in lines if "/" in line}
    runtimes = [path for path in mapped if Path(path).name.startswith(("libgomp", "libiomp", "libomp"))]
    ctypes.CDLL(runtimes[0] if runtimes else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


def _one_thread_after_fork() -> None:
    """Has a forked child compute on one thread: OpenMP would wait for the parent's others, which it does not have."""
    torch.set_num_threads(1)


_share_openmp()
os.register_at_fork(after_in_child=_one_thread_after_fork)

import ttc_kernels._native as _native  # noqa: E402

__all__ = ["OPS", "_native"]
