"""Random streams of a search tree: one 64-bit key per branch, whatever order branches are made in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence


def branch_key(seed: int, problem_id: str, address: Sequence[int]) -> int:
    """The key, in [0, 2^64), of the branch at `address` in the tree of one problem.

    A branch's address never depends on how many siblings it has, so raising a budget keeps the
    samples of a smaller one.
    """
    name = f"[{seed}, {json.dumps(problem_id)}, {list(address)}]"  # the three as one JSON list
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
