"""Keys of random streams: 64 bits per branch of a search tree, independent of the order of branches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence


def branch_key(seed: int, problem_id: str, address: Sequence[int]) -> int:
    """The key, in [0, 2^64), of the branch at `address` in the tree of one problem.

    An address does not depend on the number of siblings, so a larger budget keeps the samples of a smaller one.
    """
    name = f"[{seed}, {json.dumps(problem_id)}, {list(address)}]"  # the three as one JSON list
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
