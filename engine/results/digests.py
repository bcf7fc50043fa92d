"""What the contents of problems and prompts are, so that a resumed run is the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from engine.types import Problem


def problems_digest(problems: Sequence[Problem]) -> str:
    """The digest of ids, prompts and gold answers, in order."""
    stated = [[problem.id, problem.prompt, problem.answer] for problem in problems]
    return hashlib.blake2b(json.dumps(stated).encode(), digest_size=12).hexdigest()


def prompts_digest(prompts: Iterable[Sequence[int] | Sequence[str]]) -> str:
    """The digest of the token ids, or of the texts, that the policy is given, in order."""
    digest = hashlib.blake2b(digest_size=12)
    for ids in prompts:
        digest.update(f"{list(ids)}\n".encode())
    return digest.hexdigest()
