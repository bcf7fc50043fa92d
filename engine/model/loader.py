"""Loading a Hugging Face folder: config.json, safetensors, tokenizer. No pickle, no remote code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from engine.model.config import ModelConfig, read_config

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
HOME = Path(__file__).resolve().parent.parent / "home"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded folder: configuration, tensors by their Hugging Face names, tokenizer."""

    folder: Path
    config: ModelConfig
    tensors: dict[str, torch.Tensor]
    tokenizer: Tokenizer


def resolve_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name such as "float32" or "bf16"."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def resolve_folder(name: str | Path, home_part: str = "policy") -> Path:
    """The folder of a checkpoint; "home" is the shipped one of that part."""
    folder = HOME / home_part if str(name) == "home" else Path(name)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder at {str(name)!r}")
    return folder


def load_checkpoint(folder: Path, dtype: torch.dtype, architecture: str | None = None) -> Checkpoint:
    """Reads everything into memory in `dtype`, by default as the architecture that config.json names.

    Raises ValueError for a folder that is incomplete, damaged or not supported.
    """
    config = read_config(folder, architecture)
    tensors: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        tensors.update(read_tensors(path, dtype))
    return Checkpoint(folder, config, tensors, load_tokenizer(folder))


def tensor_names(folder: Path) -> set[str]:
    """The names of a checkpoint's tensors, without reading any. Raises ValueError for a damaged file."""
    names: set[str] = set()
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names.update(file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    return names


def read_tensors(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, in `dtype`. Raises ValueError for a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, from tokenizer.json alone."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer at {folder}: tokenizer.json is missing")
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        raise ValueError(f"the tokenizer at {folder} cannot be read: {error}") from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is damaged: {error}") from None
    else:
        names = ["model.safetensors"]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names a file outside its folder: {name!r}")
        if not (folder / name).is_file():
            raise ValueError(f"no weights at {folder}: {name} is missing (pickled .bin files are not read)")
    return [folder / name for name in names]


def take(tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor by name, its shape checked against the configuration."""
    if name not in tensors:
        raise ValueError(f"the checkpoint lacks tensor {name!r}")
    if tuple(tensors[name].shape) != shape:
        raise ValueError(f"tensor {name!r} has shape {tuple(tensors[name].shape)}, the config says {shape}")
    return tensors[name]
