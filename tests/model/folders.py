"""Checkpoint folders that are changed, and what is asked of them then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.runtime import LLM


def load(folder: Path) -> LLM:
    return LLM.load(folder, num_blocks=8)


def refused(folder: Path, *words: str) -> None:
    """The folder is refused in one line that holds the words."""
    with pytest.raises(ValueError, match=words[0]) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def change_config(folder: Path, **fields) -> None:
    """Sets fields of config.json; "absent" takes one out."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw.update(fields)
    path.write_text(json.dumps({name: value for name, value in raw.items() if value != "absent"}))
