"""What a figure was measured on: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from ttc_kernels import _native

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def hardware() -> dict[str, object]:
    """The processor, the cores this process may use, torch's threads, and the instruction set of our kernels."""
    return {
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "instruction_set": _native.supported_isas()[-1],
    }


def versions() -> dict[str, str]:
    """Python and the packages that the figures depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def commit() -> str | None:
    """The commit of this checkout, with "+changes" where files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started; None where it is not known."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, fields)
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process and of those it has started and seen end."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Bystanders:
    """Watches how much of the machine other processes take, from its making on: a busy machine times nothing."""

    def __init__(
        self,
        busy_seconds: Callable[[], float | None] = busy_seconds,
        own_seconds: Callable[[], float] = own_seconds,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._busy_seconds, self._own_seconds, self._now = busy_seconds, own_seconds, now
        self._start = (now(), busy_seconds(), own_seconds())

    def share(self) -> float | None:
        """The share of all cores, in 0..1, that others have used; None where it is not known."""
        before, busy_before, own_before = self._start
        busy = self._busy_seconds()
        if busy is None or busy_before is None:
            return None
        others = busy - busy_before - (self._own_seconds() - own_before)
        return max(0.0, others / (self._now() - before) / os.cpu_count())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
