"""A decoder's configuration, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.accounting import ModelShape
from engine.errors import UserError
from engine.model.families import Family, check_fields, family_of, layer_windows
from engine.model.fields import check_context, flag, real, whole
from engine.model.rope import Rope, read_rope
from engine.model.window import NUM_SCRATCH_BLOCKS

MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a decoder."""

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
    rope: Rope = field(default_factory=Rope)
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    windows: tuple[int | None, ...] = ()  # per layer, tokens that a query attends to; None or no entry: all

    def window(self, layer: int) -> int | None:
        """Tokens that a query of `layer` attends to, itself included; None for all before it."""
        return self.windows[layer] if self.windows else None

    @property
    def num_scratch_blocks(self) -> int:
        """Blocks that this model's KV caches need at their end, beyond those of the KV tree."""
        return NUM_SCRATCH_BLOCKS if any(self.windows) else 0

    def shape(self, has_lm_head: bool = True) -> ModelShape:
        """The sizes that the FLOPs formulas use."""
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
            windows=tuple(window for window in self.windows if window),
        )


def read_raw_config(folder: Path) -> dict:
    """The unchecked content of `folder/config.json`. Raises UserError for a missing or damaged file."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no checkpoint at {folder}: config.json is missing")
    return read_json(path)


def named_architecture(raw: dict) -> object:
    """The first of a raw configuration's `architectures`, unchecked."""
    named = raw.get("architectures")
    return named[0] if isinstance(named, list) and named else named


def read_config(folder: Path, architecture: str | None = None) -> ModelConfig:
    """Reads `folder/config.json`; `architecture` overrides the one that it names.

    Raises UserError for a missing file or anything unsupported.
    """
    path, raw = folder / "config.json", read_raw_config(folder)
    architecture = architecture or named_architecture(raw)
    family = family_of(architecture, raw, path)
    check_fields(raw, family, path)
    try:
        config = _from_raw(raw, architecture, family, path)
    except KeyError as missing:
        raise UserError(f"{path}: field {missing} is missing") from None
    return replace(config, eos_token_ids=config.eos_token_ids + more_end_tokens(folder))


def more_end_tokens(folder: Path) -> tuple[int, ...]:
    """The end-of-text tokens that generation_config.json names beside those of config.json, as transformers reads it.

    Models that chat often end a turn at a token that is named there alone.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    raw, named = read_raw_config(folder), folder / "config.json"
    vocab_size = whole("vocab_size", raw.get("vocab_size"), named)
    known = _eos_token_ids(raw.get("eos_token_id"), vocab_size, named)
    given = _eos_token_ids(read_json(path).get("eos_token_id"), vocab_size, path)
    return tuple(token for token in dict.fromkeys(given) if token not in known)


def read_json(path: Path) -> dict:
    """A JSON object from a file of at most 64 MiB. Raises UserError for anything else."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise UserError(f"{path} is damaged: it has {size} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bad JSON, not UTF-8, or nested too deep
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold a JSON object, got {str(raw)[:40]!r}")
    return raw


def _from_raw(raw: dict, architecture: str, family: Family, path: Path) -> ModelConfig:
    def size(name: str, default: int | None = None) -> int:
        value = raw[name] if default is None else raw.get(name)
        return whole(name, default if value is None else value, path)

    heads, hidden, vocab_size = size("num_attention_heads"), size("hidden_size"), size("vocab_size")
    # A missing field means the family's default, null means one KV head per query head.
    num_known = heads if "num_key_value_heads" in raw else family.default_kv_heads
    kv_heads = size("num_key_value_heads", num_known or heads)
    known_dim = None if "head_dim" in raw else family.default_head_dim
    head_dim = size("head_dim", known_dim or max(hidden // heads, 1))
    if heads % kv_heads:
        raise UserError(f"{path}: num_attention_heads = {heads} is not a multiple of {kv_heads} KV heads")
    if head_dim % 2:
        raise UserError(f"{path}: head_dim must be even, got {head_dim}")
    num_layers, max_positions = size("num_hidden_layers"), size("max_position_embeddings")
    theta, rope = read_rope(raw, max_positions, path)
    context = rope.context(max_positions)
    check_context(context, head_dim, path)
    windows = layer_windows(raw, family, num_layers, path)
    windows = tuple(window if window and window < context else None for window in windows)
    labels = raw.get("id2label")
    if labels is not None and not isinstance(labels, dict):
        raise UserError(f"{path}: id2label must map numbers to labels, got {str(labels)[:60]!r}")
    is_classifier = architecture.endswith("ForTokenClassification")
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        rms_eps=real("rms_norm_eps", raw["rms_norm_eps"], path),
        rope_theta=theta,
        is_tied=flag("tie_word_embeddings", raw, path),
        num_labels=(len(labels) if labels else size("num_labels", 2)) if is_classifier else 0,
        eos_token_ids=_eos_token_ids(raw.get("eos_token_id"), vocab_size, path),
        rope=rope,
        has_qkv_bias=family.has_qkv_bias,
        has_qk_norm=family.has_qk_norm,
        windows=windows if any(windows) else (),
    )


def _eos_token_ids(given: object, vocab_size: int, path: Path) -> tuple[int, ...]:
    ids = [] if given is None else given if isinstance(given, list) else [given]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise UserError(f"{path}: eos_token_id must be within 0..{vocab_size - 1}, got {given!r}")
    return tuple(ids)
