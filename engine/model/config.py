"""A decoder's configuration, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engine.accounting import ModelShape

_ARCHITECTURES = ("LlamaForCausalLM", "LlamaForTokenClassification")
# Fields that would change the result if they had another value than this one.
_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None}


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


def read_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`. Raises ValueError for a missing file or anything unsupported."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no checkpoint at {folder}: config.json is missing")
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    architecture = (raw.get("architectures") or ["none"])[0]
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{path}: architecture {architecture!r} is not supported ({', '.join(_ARCHITECTURES)} are)"
        )
    for name, value in _REQUIRED.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{path}: {name} = {raw[name]!r} is not supported, only {value!r}")
    try:
        return _from_raw(raw, architecture, path)
    except KeyError as missing:
        raise ValueError(f"{path}: field {missing} is missing") from None


def _from_raw(raw: dict, architecture: str, path: Path) -> ModelConfig:
    heads = raw["num_attention_heads"]
    eos = raw.get("eos_token_id")
    labels = raw.get("id2label")
    is_classifier = architecture.endswith("ForTokenClassification")
    return ModelConfig(
        architecture=architecture,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        context=raw["max_position_embeddings"],
        rms_eps=raw["rms_norm_eps"],
        rope_theta=_rope_theta(raw, path),
        is_tied=bool(raw.get("tie_word_embeddings", False)),
        num_labels=(len(labels) if labels else raw.get("num_labels", 2)) if is_classifier else 0,
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    )


def _rope_theta(raw: dict, path: Path) -> float:
    """The base of the rotary embedding, from either spelling; scaled variants are refused by name."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"{path}: rope type {kind!r} is not supported, only 'default'")
    return float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
