"""Collected only where TTC_DEVICE names a GPU, as benchmarks/gpu.sh does: an ordinary run does not see this folder."""

import os

import pytest

from engine.model import resolve_device

DEVICE = os.environ.get("TTC_DEVICE", "cpu")
collect_ignore_glob = [] if DEVICE == "cuda" else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    try:
        resolve_device(DEVICE)
    except ValueError as error:
        raise pytest.UsageError(f"TTC_DEVICE: {error}") from None
