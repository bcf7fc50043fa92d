"""Downloads checkpoints from the Hugging Face Hub into its local cache."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import UserError

# Pickles and Python code are never read, so they are not downloaded either.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form "owner/model"."""
    return re.fullmatch(f"{_PART}/{_PART}", name) is not None


def fetch(name: str) -> Path:
    """The folder of "owner/model" in the local cache, downloaded if it is missing (never with HF_HUB_OFFLINE=1).

    Raises UserError if it is not in the cache and cannot be downloaded.
    """
    # Imported here because these take a third of a second, and most folders are local.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except LocalEntryNotFoundError:
        why = "it is not in the local cache, and the Hub cannot be reached or HF_HUB_OFFLINE is set"
    except RepositoryNotFoundError:
        why = "the Hub has no such repository, or it is private"
    except Exception as error:  # what else a download raises depends on the HTTP library beneath it
        why = " ".join(str(error).split())[:200]
    raise UserError(f"no checkpoint folder at {name!r}, and it cannot be had from the Hub: {why}") from None
