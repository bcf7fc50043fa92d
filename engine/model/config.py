"""A decoder's configuration, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engine.accounting import ModelShape

_ARCHITECTURES = ("LlamaForCausalLM", "LlamaForTokenClassification")
# Fields that would change the result if they had another value than this one.
_REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "quantization_config": None,
}


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a Llama-family decoder."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int  # tokens
    rms_eps: float
    rope_theta: float
    is_tied: bool  # the LM head is the embedding
    num_labels: int  # of a classification head; 0 for a causal LM
    eos_token_ids: tuple[int, ...]

    def shape(self, has_lm_head: bool = True) -> ModelShape:
        """What the FLOPs formulas need."""
        q_out = self.num_heads * self.head_dim
        kv_out = self.num_kv_heads * self.head_dim
        layer = self.hidden_size * (2 * q_out + 2 * kv_out + 3 * self.intermediate_size)
        head = self.hidden_size * (self.vocab_size if has_lm_head else self.num_labels)
        return ModelShape(
            num_matmul_params=self.num_layers * layer + head,
            num_head_params=head,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
        )


def read_raw_config(folder: Path) -> dict:
    """`folder/config.json` as it stands. Raises ValueError for a missing or damaged file."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no checkpoint at {folder}: config.json is missing")
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:  # bad JSON, or bytes that are no text
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a JSON object, got {str(raw)[:40]!r}")
    return raw


def named_architecture(raw: dict) -> object:
    """What a raw configuration gives as its architecture."""
    named = raw.get("architectures")
    return named[0] if isinstance(named, list) and named else named


def read_config(folder: Path, architecture: str | None = None) -> ModelConfig:
    """Reads `folder/config.json`, by default as the architecture that it names.

    Raises ValueError for a missing file or anything unsupported.
    """
    path, raw = folder / "config.json", read_raw_config(folder)
    architecture = architecture or named_architecture(raw)
    if architecture not in _ARCHITECTURES:
        raise ValueError(f"{path}: architecture {architecture!r} is not supported ({', '.join(_ARCHITECTURES)} are)")
    for name, value in _REQUIRED.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{path}: {name} = {raw[name]!r} is not supported, only {value!r}")
    try:
        return _from_raw(raw, architecture, path)
    except KeyError as missing:
        raise ValueError(f"{path}: field {missing} is missing") from None


def _from_raw(raw: dict, architecture: str, path: Path) -> ModelConfig:
    def size(name: str, default: int | None = None) -> int:
        value = raw[name] if default is None else raw.get(name) or default
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {name} must be a whole number of at least 1, got {value!r}")
        return value

    heads, hidden, vocab_size = size("num_attention_heads"), size("hidden_size"), size("vocab_size")
    kv_heads = size("num_key_value_heads", heads)
    head_dim = size("head_dim", max(hidden // heads, 1))
    if heads % kv_heads:
        raise ValueError(f"{path}: num_attention_heads = {heads} is not a multiple of {kv_heads} KV heads")
    if head_dim % 2:
        raise ValueError(f"{path}: head_dim must be even, got {head_dim}")
    labels = raw.get("id2label")
    is_classifier = architecture.endswith("ForTokenClassification")
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=size("max_position_embeddings"),
        rms_eps=_number("rms_norm_eps", raw["rms_norm_eps"], path),
        rope_theta=_rope_theta(raw, path),
        is_tied=bool(raw.get("tie_word_embeddings", False)),
        num_labels=(len(labels) if labels else size("num_labels", 2)) if is_classifier else 0,
        eos_token_ids=_eos_token_ids(raw.get("eos_token_id"), vocab_size, path),
    )


def _number(name: str, value: object, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{path}: {name} must be a number over 0, got {value!r}")
    return float(value)


def _eos_token_ids(given: object, vocab_size: int, path: Path) -> tuple[int, ...]:
    ids = [] if given is None else given if isinstance(given, list) else [given]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(f"{path}: eos_token_id must be within 0..{vocab_size - 1}, got {given!r}")
    return tuple(ids)


def _rope_theta(raw: dict, path: Path) -> float:
    """The base of the rotary embedding, from either spelling; scaled variants are refused by name."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_parameters must be an object, got {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"{path}: rope type {kind!r} is not supported, only 'default'")
    return _number("rope_theta", rope.get("rope_theta", raw.get("rope_theta", 10000.0)), path)
