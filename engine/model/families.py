"""The supported model families, and the check that a `config.json` describes no variant of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError
from engine.model.fields import whole

FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = ("ForCausalLM", "ForTokenClassification")


@dataclass(frozen=True)
class Family:
    """How a family differs from Llama, and transformers' defaults for fields that a config leaves out."""

    model_type: str
    has_qkv_bias: bool = False
    has_qk_norm: bool = False  # RMS norm of every query and key head before the rotary embedding
    window_rule: str = "none"  # layers with a sliding window: "none", "all", or "chosen" by the config
    default_window: int | None = None  # tokens
    default_kv_heads: int | None = None  # None: as many as query heads
    default_head_dim: int | None = None  # None: hidden size / heads


FAMILIES = {
    "Llama": Family("llama"),
    "Mistral": Family("mistral", window_rule="all", default_window=4096, default_kv_heads=8),
    "Qwen2": Family("qwen2", has_qkv_bias=True, window_rule="chosen", default_window=4096, default_kv_heads=32),
    "Qwen3": Family(
        "qwen3",
        has_qk_norm=True,
        window_rule="chosen",
        default_window=4096,
        default_kv_heads=32,
        default_head_dim=128,
    ),
}
ARCHITECTURES = {f"{name}{kind}": family for name, family in FAMILIES.items() for kind in KINDS}

# Fields that change the result unless they have one of these values; null and absence are always accepted.
_ALLOWED: dict[str, tuple] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "quantization_config": (),
    "compression_config": (),
    "per_layer_config": (),
    "partial_rotary_factor": (1,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "alibi": (False,),
    "position_embedding_type": ("rope", "absolute"),  # "absolute" is a leftover of transformers, read by none of ours
    "use_parallel_residual": (False,),
    "use_mrope": (False,),
    "attention_chunk_size": (),
    "no_rope_layers": (),
    "query_pre_attn_scalar": (),
    "kv_lora_rank": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "attention_scale": (),
    "attention_scaling": (),
    "attention_multiplier": (),  # replaces 1 / sqrt(head dim)
    "attention_out_bias": (False,),
    "attn_temperature_tuning": (False,),
    "clip_qkv": (),
    "lm_head_bias": (False,),
    "norm_type": ("rmsnorm", "rms_norm", "RMSNorm"),
    "residual_scale": (1,),
    "rms_norm_add_unit_offset": (False,),
    "rope_interleaved": (False,),
    "rope_ratio": (1,),
    "rotary_dim": (),
    "rotary_pct": (1,),
    "sandwich_norm": (False,),
    "scale_attention_by_inverse_layer_idx": (False,),
}
# Substrings of field names that cap, scale or route in other models, and the values that switch this off.
_SUSPECT: dict[str, tuple] = {
    "softcap": (False, 0),
    "soft_cap": (False, 0),
    "multiplier": (1,),
    "expert": (False, 0),
    "moe_": (False, 0),
    "embedding_scale": (False, 1),
    "embed_scale": (False, 1),
}
_QK_NORM = ("qk_norm", "use_qk_norm", "qk_layernorm")


def family_of(architecture: object, raw: dict, path: Path) -> Family:
    """The family of an architecture. Raises UserError if it is not supported or contradicts `model_type`."""
    family = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        remote = "wants remote code (auto_map), which is never run, and " if raw.get("auto_map") else ""
        raise UserError(
            f"{path}: architecture {architecture!r} {remote}is not supported ({', '.join(ARCHITECTURES)} are)"
        )
    if raw.get("model_type", family.model_type) != family.model_type:
        raise UserError(f"{path}: model_type {raw['model_type']!r} does not go with architecture {architecture!r}")
    return family


def check_fields(raw: dict, family: Family, path: Path) -> None:
    """Raises UserError, naming the field, if one would change what the family's layers compute."""
    allowed = dict(_ALLOWED)
    allowed["attention_bias"] = (family.has_qkv_bias,)  # elsewhere it means a bias on the output projection too
    allowed["qkv_bias"] = (family.has_qkv_bias,)
    if not family.has_qk_norm:
        allowed.update(dict.fromkeys(_QK_NORM, (False,)))
    if family.window_rule == "all":
        allowed["use_sliding_window"] = (True,)  # no switch in this family: the window is what sliding_window says
    if family.window_rule == "none":
        allowed.update(sliding_window=(), use_sliding_window=(False,))
    for name, value in raw.items():
        if value is None or value == {} or value == []:
            continue
        values = allowed.get(name)
        if values is None:
            values = next((off for part, off in _SUSPECT.items() if part in name), None)
        if values is not None and not any(value == each and type(value) in _alike(each) for each in values):
            only = ", ".join(map(repr, values)) or "null"
            raise UserError(f"{path}: {name} = {str(value)[:80]!r} is not supported, only {only}")


def _alike(value: object) -> tuple[type, ...]:
    """Types that may equal `value`: int and float match each other, but True does not match 1."""
    return (int, float) if type(value) in (int, float) else (type(value),)


def layer_windows(raw: dict, family: Family, num_layers: int, path: Path) -> tuple[int | None, ...]:
    """Per layer, the tokens that a query attends to, itself included; None for all. Raises UserError if malformed."""
    window = raw.get("sliding_window", family.default_window)
    if family.window_rule == "none" or (family.window_rule == "chosen" and not raw.get("use_sliding_window")):
        window = None
    window = None if window is None else whole("sliding_window", window, path)
    types = raw.get("layer_types")
    if family.window_rule == "chosen" and types is None:
        first = whole("max_window_layers", raw.get("max_window_layers", 28), path)
        return tuple(window if i >= first else None for i in range(num_layers))
    if types is None:
        return (window,) * num_layers
    possible = {FULL} if window is None else {SLIDING} if family.window_rule == "all" else {FULL, SLIDING}
    if not isinstance(types, list) or len(types) != num_layers or not all(kind in possible for kind in types):
        raise UserError(
            f"{path}: layer_types must be {num_layers} of {', '.join(sorted(possible))} with a sliding window of "
            f"{window}, got {str(types)[:120]}"
        )
    return tuple(window if kind == SLIDING else None for kind in types)
