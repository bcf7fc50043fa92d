"""A policy with a chat template, a verifier of its answers, and lm-eval tasks on rows of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import ttc  # noqa: F401, a fixture
from tests.docs.builders import word_policy
from tests.verifiers.builders import make

CONTEXT = 256


@dataclass(frozen=True)
class Folders:
    policy: Path
    prm: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("plugins")
    return Folders(word_policy(folder / "policy", context=CONTEXT), make(folder / "prm", "qwen-prm", seed=1))


@pytest.fixture
def options(folders: Folders) -> dict[str, object]:
    """Model arguments of a small search, in which what a random model writes has an answer: its last number."""
    return {
        **{"policy": str(folders.policy), "prm": str(folders.prm), "task": "gsm8k"},
        **{"strategy": "best-of-n", "budget": 4, "seed": 3, "max_tokens": 24, "num_blocks": 1024},
    }


def written(options: dict[str, object]) -> str:
    """As lm-eval's --model_args has them."""
    return ",".join(f"{name}={value}" for name, value in options.items())


def typed(options: dict[str, object]) -> list[object]:
    """As `ttc search` has them."""
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Fifty rows in GSM8K's format."""
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"How many are {n} boxes of {n % 7} mugs?", "answer": f"#### {n}"} for n in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
