"""`ttc env`: what a bug report needs to say about a machine."""

from __future__ import annotations

import platform
from importlib import metadata

import typer

_PACKAGES = ("ttc-engine", "torch", "transformers", "safetensors", "tokenizers", "numpy", "accelerate")
_HOME_PARTS = ("policy", "prm", "trunk_head")


def env() -> None:
    """Prints versions, the CPU, the native module and the shipped models."""
    from engine.results.provenance import machine_facts

    facts = {"python": platform.python_version(), **_versions(), **machine_facts(), **_home_models()}
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:{width}}  {value}")


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _home_models() -> dict[str, str]:
    from engine.model import HOME

    models = {}
    for part in _HOME_PARTS:
        files = sorted((HOME / part).glob("*.safetensors"))
        size = sum(path.stat().st_size for path in files)
        models[f"home {part}"] = f"{size / 1e6:.1f} MB in {HOME / part}" if files else f"missing in {HOME / part}"
    return models
