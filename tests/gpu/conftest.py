"""Collected only where TTC_DEVICE names a GPU, as benchmarks/gpu.sh does: an ordinary run does not see this folder."""

import os

import pytest

from engine.model import resolve_device

DEVICE = os.environ.get("TTC_DEVICE", "cpu")
collect_ignore_glob = [] if DEVICE == "cuda" else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    try:
        resolve_device(DEVICE)
        if DEVICE == "cuda":
            check_compiled()
    except ValueError as error:
        raise pytest.UsageError(f"TTC_DEVICE: {error}") from None


def check_compiled() -> None:
    """Raises ValueError where Triton's interpreter would run the kernels, on the CPU: nothing would be tested."""
    import triton

    if not isinstance(triton.language.sum, triton.JITFunction):
        raise ValueError("Triton was imported with TRITON_INTERPRET=1, under which no kernel runs on the GPU")
