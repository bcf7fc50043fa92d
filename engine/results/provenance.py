"""What a figure was measured on (machine, versions, commit), and the JSON report that states it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from engine.files import write_atomically
from engine.model import resolve_device
from ttc_kernels import _native

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def provenance(device: str = "cpu") -> dict[str, object]:
    """`hardware`, `versions` and `commit`, with which every report begins. Raises UserError as `hardware` does."""
    return {"hardware": hardware(device), "versions": versions(), "commit": commit()}


def write_json(path: str | os.PathLike[str] | None, report: object) -> None:
    """Writes a report, making its folder; without a path does nothing."""
    if path is not None:
        write_atomically(path, (json.dumps(report, indent=1) + "\n").encode())


def hardware(device: str = "cpu") -> dict[str, object]:
    """The processor, the cores this process may use, torch's threads, and the instruction set of our kernels.

    With "cuda" the GPU too. Raises UserError where torch finds no such device.
    """
    facts: dict[str, object] = {
        "cpu": cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "instruction_set": _native.supported_isas()[-1],
    }
    return facts if device == "cpu" else facts | _gpu(device)


def _gpu(device: str) -> dict[str, object]:
    gpu = torch.cuda.get_device_properties(resolve_device(device).device)
    return {
        "gpu": gpu.name,
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1),
        "num_multiprocessors": gpu.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def machine_facts() -> dict[str, str]:
    """The machine as far as speed depends on it, in words."""
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    if "OMP_NUM_THREADS" in os.environ:
        threads += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    return {
        "system": platform.platform(),
        "cpu": cpu_name(),
        "threads": threads,
        "instruction sets": ", ".join(_native.supported_isas()),
        "native module": str(_native.__file__),
    }


def cpu_name() -> str:
    """The model name that Linux gives, or what the platform knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
