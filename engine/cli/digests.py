"""What the contents of checkpoints and problems are, so that a resumed run is the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.types import Problem

_PARTS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.safetensors",
    "*.safetensors.index.json",
)  # what the loader reads


def checkpoint_digest(folder: Path) -> str:
    """Of the contents of a checkpoint, wherever its folder stands."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(path for part in _PARTS for path in folder.glob(part)):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12))
        digest.update(f"{path.name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


def problems_digest(problems: Sequence[Problem]) -> str:
    """Of ids, prompts and gold answers, in order."""
    stated = [[problem.id, problem.prompt, problem.answer] for problem in problems]
    return hashlib.blake2b(json.dumps(stated).encode(), digest_size=12).hexdigest()


def prompts_digest(prompts: Iterable[Sequence[int]]) -> str:
    """Of the token ids that the policy is given, in order."""
    digest = hashlib.blake2b(digest_size=12)
    for ids in prompts:
        digest.update(f"{list(ids)}\n".encode())
    return digest.hexdigest()
