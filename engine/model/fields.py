"""The range of every number in a `config.json`: one outside it is refused before anything of its size is made.

The bounds are far beyond all models of these families, and small enough that nothing overflows on the way to the
tensors, whose own sizes decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.counts import shown
from engine.errors import UserError

MAX_HEAD_DIM = 256  # the attention kernels' limit
MAX_TABLE_BYTES = 2 << 30  # of the tables of rotary embeddings

_WHOLE = {  # name -> the least and the largest
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 22),
    "num_hidden_layers": (1, 1 << 12),
    "num_attention_heads": (1, 1 << 16),
    "num_key_value_heads": (1, 1 << 16),
    "head_dim": (1, MAX_HEAD_DIM),
    "max_position_embeddings": (1, 1 << 30),
    "original_max_position_embeddings": (1, 1 << 30),
    "sliding_window": (1, 1 << 30),
    "max_window_layers": (0, 1 << 30),
    "num_labels": (1, 1 << 16),
}
_REAL = {  # name -> what it is over, and the largest
    "rms_norm_eps": (0, 1),
    "rope_theta": (1, 1e15),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "attention_factor"), (1e-3, 1e6)),
    **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim"), (1e-3, 1e6)),
}


def whole(name: str, value: object, path: Path) -> int:
    """The value of a field that is a whole number. Raises UserError for any other, and one out of range."""
    least, most = _WHOLE[name]
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{path}: {name} must be a whole number within {least}..{most}, got {shown(value)}")
    return value


def real(name: str, value: object, path: Path, of: str = "") -> float:
    """The value of a field that is a number. Raises UserError for any other, NaN, and one out of range."""
    over, most = _REAL[name]
    if type(value) not in (int, float) or not over < value <= most:
        raise UserError(f"{path}: {name}{of} must be a number over {over} and at most {most:g}, got {shown(value)}")
    return float(value)


def flag(name: str, raw: Mapping[str, object], path: Path) -> bool:
    """The value of a field that is true or false; false where it is missing. Raises UserError for any other."""
    value = raw.get(name)
    if value is not None and type(value) is not bool:
        raise UserError(f"{path}: {name} must be true or false, got {shown(value)}")
    return bool(value)


def check_context(context: int, head_dim: int, path: Path) -> None:
    """Raises UserError for a context whose tables of rotary embeddings would take more than MAX_TABLE_BYTES."""
    most = MAX_TABLE_BYTES // (4 * head_dim)
    if context > most:
        raise UserError(
            f"{path}: max_position_embeddings and the rope's factor make a context of {context} tokens, "
            f"with a head_dim of {head_dim} at most {most} are supported"
        )
