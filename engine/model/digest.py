"""A digest of a checkpoint's contents, by which runs recognise the model they started with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.model.config import more_end_tokens

_PARTS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.safetensors",
    "*.safetensors.index.json",
)  # what the loader reads


def checkpoint_digest(folder: Path) -> str:
    """24 hex digits of the files that the loader reads; the folder's name and place do not matter."""
    digest = hashlib.blake2b(digest_size=12)
    parts = [*_PARTS, *(["generation_config.json"] if more_end_tokens(folder) else [])]
    for path in sorted(path for part in parts for path in folder.glob(part)):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12))
        digest.update(f"{path.name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()
