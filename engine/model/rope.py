"""Rotary embeddings: their options in a `config.json`, and their tables, computed as transformers does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import UserError
from engine.model.fields import real, whole

DEFAULT_THETA = 10000.0
# The numbers that each type of scaling uses; all types use rope_theta.
_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
_OPTIONAL = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")}
# Field names that are accepted; a type ignores those that it does not use, as in transformers.
_KNOWN = {
    *("type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "truncate"),
    *("finetuned", *_NUMBERS["llama3"], *_OPTIONAL["yarn"]),
}


@dataclass(frozen=True)
class Rope:
    """How the frequencies of a rotary embedding are scaled; 0 marks a number that the config does not give."""

    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0  # tokens, before the scaling stretched it
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    attention_factor: float = 0.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    is_truncated: bool = True

    def context(self, max_positions: int) -> int:
        """Maximum tokens per branch.

        Linear scaling and YaRN extend the trained length, whether or not `max_positions` already includes this.
        Dynamic scaling does not: beyond the original length it would change keys that are in the cache already.
        """
        if self.kind == "linear":
            return max(max_positions, int(max_positions * self.factor))
        if self.kind == "yarn":
            return max(max_positions, int(self.original_context * self.factor))
        return max_positions


def read_rope(raw: dict, max_positions: int, path: Path) -> tuple[float, Rope]:
    """The base and the scaling, from `rope_scaling` or `rope_parameters`.

    Raises UserError, naming the field, for anything unsupported.
    """
    given = [raw[name] for name in ("rope_scaling", "rope_parameters") if raw.get(name)]
    for rope in given:
        if not isinstance(rope, dict):
            raise UserError(f"{path}: rope_parameters must be an object, got {rope!r}")
    if len(given) == 2 and given[0] != given[1]:
        raise UserError(f"{path}: rope_scaling {given[0]} and rope_parameters {given[1]} are not the same")
    rope = given[0] if given else {}
    unknown = [name for name in rope if name not in _KNOWN]
    if unknown:
        raise UserError(f"{path}: rope field {unknown[0]!r} = {str(rope[unknown[0]])[:60]} is not supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise UserError(f"{path}: rope type {kind!r} is not supported, only {', '.join(map(repr, _NUMBERS))}")
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise UserError(f"{path}: partial_rotary_factor = {rope['partial_rotary_factor']!r} is not supported, only 1")

    theta = rope.get("rope_theta")
    theta = real("rope_theta", raw.get("rope_theta", DEFAULT_THETA) if theta is None else theta, path)
    original = raw.get("original_max_position_embeddings")
    if original is None:
        original = rope.get("original_max_position_embeddings")
    original = whole("original_max_position_embeddings", max_positions if original is None else original, path)
    fields = {name: rope.get(name) for name in _NUMBERS[kind]}
    if kind == "yarn" and "factor" in rope and fields["factor"] is None:
        fields["factor"] = max_positions / original
    fields |= {name: rope[name] for name in _OPTIONAL.get(kind, ()) if rope.get(name)}
    of_kind = f" of rope type {kind!r}"
    numbers = {name: real(name, value, path, of_kind) for name, value in fields.items()}
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise UserError(
            f"{path}: high_freq_factor {numbers['high_freq_factor']} must be over low_freq_factor "
            f"{numbers['low_freq_factor']}"
        )
    truncate = rope.get("truncate")
    return theta, Rope(kind, original_context=original, is_truncated=truncate is None or bool(truncate), **numbers)


def rope_tables(rope: Rope, theta: float, head_dim: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tables of cos and sin, each float32 (context, head_dim / 2)."""
    frequencies, scale = inverse_frequencies(rope, theta, head_dim)
    angles = torch.outer(torch.arange(context).float(), frequencies)
    cos, sin = angles.cos(), angles.sin_()
    return (cos, sin) if scale == 1.0 else (cos.mul_(scale), sin.mul_(scale))


def inverse_frequencies(rope: Rope, theta: float, head_dim: int) -> tuple[torch.Tensor, float]:
    """Radians per position, float32 (head_dim / 2,), and the factor that multiplies cos and sin.

    Operations keep transformers' order, because the angles of late positions amplify a frequency's last bit.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    powers = theta**exponents
    plain = 1.0 / powers
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, theta, powers, head_dim), _yarn_scale(rope)
    return plain, 1.0


def _llama3(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """Stretches long wavelengths, keeps short ones and interpolates between them."""
    waves = 2 * math.pi / plain
    low, high, original = rope.low_freq_factor, rope.high_freq_factor, rope.original_context
    scaled = torch.where(waves > original / low, plain / rope.factor, plain)
    smooth = (original / waves - low) / (high - low)
    mixed = (1 - smooth) * scaled / rope.factor + smooth * scaled
    is_between = ~(waves < original / high) * ~(waves > original / low)
    return torch.where(is_between, mixed, scaled)


def _yarn(rope: Rope, theta: float, powers: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Keeps dimensions that turn often within the original context and stretches those that hardly turn."""

    def dimension(num_turns: float) -> float:
        return (head_dim * math.log(rope.original_context / (num_turns * 2 * math.pi))) / (2 * math.log(theta))

    low, high = dimension(rope.beta_fast or 32), dimension(rope.beta_slow or 1)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_scale(rope: Rope) -> float:
    def scale(mscale: float = 1.0) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * mscale * math.log(rope.factor) + 1.0

    if rope.attention_factor:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale()
