"""The ops: a folder each, with `api.py` (to call), `reference.py` (the definition), `cases.py` (inputs)."""

import ctypes
from pathlib import Path

import torch  # noqa: F401  (first: it brings the OpenMP runtime that _native uses)

OPS = (
    "tree_attention",
    "rope_store_kv",
    "copy_blocks",
    "rms_norm",
    "swiglu",
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


_share_openmp()

import ttc_kernels._native as _native  # noqa: E402

__all__ = ["OPS", "_native"]
