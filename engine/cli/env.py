"""`ttc env`: what a bug report needs to say about a machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import typer

_PACKAGES = ("ttc-engine", "torch", "transformers", "safetensors", "tokenizers", "numpy", "accelerate")
_HOME_PARTS = ("policy", "prm", "trunk_head")


def env() -> None:
    """Prints versions, the CPU, the native module and the shipped models."""
    facts = {"python": platform.python_version(), **_versions(), **machine_facts(), **_home_models()}
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:{width}}  {value}")


def machine_facts() -> dict[str, str]:
    """The machine as far as speed depends on it."""
    import torch

    from ttc_kernels import _native

    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores"
        + "".join(f", {name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ),
        "instruction sets": ", ".join(_native.supported_isas()),
        "native module": str(_native.__file__),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _cpu_name() -> str:
    """The model name that Linux gives, or what the platform knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _home_models() -> dict[str, str]:
    from engine.model import HOME

    models = {}
    for part in _HOME_PARTS:
        files = sorted((HOME / part).glob("*.safetensors"))
        size = sum(path.stat().st_size for path in files)
        models[f"home {part}"] = f"{size / 1e6:.1f} MB in {HOME / part}" if files else f"missing in {HOME / part}"
    return models
