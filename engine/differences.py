"""What differs between the configuration that a file was made with and the one at hand."""

from __future__ import annotations

import json


def difference(theirs: dict, ours: dict) -> str:
    """The differences of two configurations, which are JSON values: `seed was 0, now 1; budget was 16, now 8`."""
    old, new = _flat(theirs), _flat(ours)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    shown = [f"{name} was {_shown(old.get(name))}, now {_shown(new.get(name))}" for name in names[:6]]
    return "; ".join(shown) + (f"; and {len(names) - 6} more" if len(names) > 6 else "")


def _flat(config: dict, prefix: str = "") -> dict[str, str]:
    """All values as JSON, by dotted name."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
    return flat


def _shown(text: str | None) -> str:
    text = "not set" if text is None else text
    return text if len(text) <= 80 else text[:77] + "..."
