"""Loading a Hugging Face folder: config.json, safetensors, tokenizer. No pickle, no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from engine.config import is_endpoint
from engine.errors import UserError
from engine.model.config import ModelConfig, read_config, read_json
from engine.model.hub import fetch, is_hub_id
from engine.model.tensor_files import TensorFiles
from engine.model.weights import check_trunk

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
GPU_DTYPES = DTYPES | {"float16": torch.float16, "fp16": torch.float16}
HOME = Path(__file__).resolve().parent.parent / "home"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded folder: configuration, tensors by their Hugging Face names, tokenizer."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]  # each is read from its file when first accessed
    tokenizer: Tokenizer


def resolve_dtype(name: str, device: str = "cpu") -> torch.dtype:
    """The torch dtype of a name such as "float32" or "bf16"; "float16" and "fp16" are accepted on a GPU only."""
    known = DTYPES if device == "cpu" else GPU_DTYPES
    if name not in known:
        more = " (on a GPU also float16, fp16)" if known is DTYPES else ""
        raise UserError(
            f"dtype must be one of {', '.join(known)}{more}; checkpoints in float16 load in any, got {name!r}"
        )
    return known[name]


def resolve_folder(name: str | Path, home_part: str = "policy") -> Path:
    """A checkpoint's local folder: the given one, the download of "owner/model", or the shipped one for "home"."""
    folder = HOME / home_part if str(name) == "home" else Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, str) and is_hub_id(name):
        return fetch(name)
    if is_endpoint(name):
        raise UserError("an endpoint can only be the policy of a search, and here a checkpoint's folder is needed")
    raise UserError(f"no checkpoint folder at {str(name)!r}")


def load_checkpoint(
    folder: Path, dtype: torch.dtype, architecture: str | None = None, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Reads the configuration, the tokenizer and the tensors' headers; each tensor is read when first accessed.

    `architecture` overrides the one that config.json names. Raises UserError for a folder that is incomplete,
    damaged or not supported.
    """
    config = read_config(folder, architecture)
    tensors = _open_weights(folder, dtype, device)
    check_trunk(config, tensors)
    if config.is_tied and _HEAD in tensors and _EMBEDDING in tensors and not tensors.is_equal(_HEAD, _EMBEDDING):
        config = replace(config, is_tied=False)  # stored tensors overrule the config, as in transformers
    return Checkpoint(folder, config, tensors, load_tokenizer(folder))


def tensor_names(folder: Path) -> set[str]:
    """The names of a checkpoint's tensors, without reading any. Raises UserError for a damaged file."""
    return set(_open_weights(folder, torch.float32))


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes that a checkpoint's tensors take in `dtype`, without reading any. Raises UserError for a damaged file."""
    return _open_weights(folder, dtype).num_bytes


def read_tensors(path: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> Mapping[str, torch.Tensor]:
    """The tensors of one safetensors file, in `dtype`. Raises UserError for a damaged one."""
    return TensorFiles([path], dtype, device)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, from tokenizer.json alone."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"no tokenizer at {folder}: tokenizer.json is missing")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        raise UserError(f"the tokenizer at {folder} cannot be read: {error}") from None
    # A file that was saved while it cut or padded texts says so, and would cut or pad every prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _weight_map(path: Path) -> dict[str, str]:
    """The index of weights in several files, tensor name -> file name; empty if there is no index."""
    if not path.is_file():
        return {}
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"{path} is damaged: weight_map must map tensors to files, got {str(found)[:40]!r}")
    return found


def _open_weights(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> TensorFiles:
    """The weight files that a folder's index names, or else `model.safetensors`."""
    path = folder / "model.safetensors.index.json"
    weight_map = _weight_map(path)
    names = sorted(set(weight_map.values())) or ["model.safetensors"]
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{path} names a file outside its folder: {name!r}")
        if not (folder / name).is_file():
            raise UserError(f"no weights at {folder}: {name} is missing (pickled .bin files are not read)")
    tensors = TensorFiles([folder / name for name in names], dtype, device)
    for name, file in weight_map.items():
        if name not in tensors or tensors.file(name).name != file:
            raise UserError(f"{path} says that tensor {name!r} is in {file}, it is not there")
    return tensors
