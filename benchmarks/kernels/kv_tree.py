"""Times the KV tree's per-token calls: plan and extend over many leaves. Prints one JSON line per case.

python -m benchmarks.kernels.kv_tree
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.options import make_parser
from benchmarks.timing import seconds_of
from engine.reports.progress import Progress
from engine.results.provenance import provenance, write_json
from ttc_kernels import _native

CASES = [(num_leaves, depth) for num_leaves in (64, 256, 1024) for depth in (1, 3, 6)]


def beams(num_leaves: int, trunk: int, depth: int, width: int, step: int):
    """(tree, leaves) under a shared trunk: each round forks every branch `width` ways, by `step` tokens."""
    tree = _native.KVTree(200_000, 16)
    root, _ = tree.open(np.zeros(0, np.int32))
    tree.extend(np.array([root]), np.array([trunk]), np.arange(trunk, dtype=np.int32))
    live = np.array([root], np.int32)
    for level in range(depth):
        n = width if level < depth - 1 else num_leaves // len(live)
        live = np.concatenate([tree.fork(int(handle), n) for handle in live])
        tree.extend(live, np.full(len(live), step, np.int32), np.arange(len(live) * step, dtype=np.int32))
    assert len(live) == num_leaves
    return tree, live


def microseconds(call: Callable[[], object], repeats: int) -> dict[str, float]:
    times = [seconds_of(call) * 1e6 for _ in range(repeats)]
    return {"min_us": round(min(times), 1), "median_us": round(statistics.median(times), 1)}


def time_case(num_leaves: int, depth: int, repeats: int) -> list[dict]:
    """A row per call."""
    tree, leaves = beams(num_leaves, trunk=1000, depth=depth, width=2, step=20)
    ones, twenty = np.ones(num_leaves, np.int32), np.full(num_leaves, 20, np.int32)
    shuffled = np.random.default_rng(0).permutation(leaves)
    case = {"leaves": num_leaves, "depth": depth, "items": len(tree.plan(leaves, ones).items)}
    calls = {
        "plan": lambda: tree.plan(leaves, ones),
        "plan_shuffled": lambda: tree.plan(shuffled, ones),
        "plan_20_queries": lambda: tree.plan(leaves, twenty),
        "extend_1": lambda: tree.extend(leaves, ones, ones),
    }
    rows = [{"call": name, **case, **microseconds(call, repeats)} for name, call in calls.items()]
    tree.check_integrity()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("kernels.kv_tree", __doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="at most 2000: extend grows the tree")
    args = parser.parse_args(arguments)
    rows = []
    with Progress("KV tree:", len(CASES)) as progress:
        for num_leaves, depth in CASES:
            rows += time_case(num_leaves, depth, args.repeats)
            progress.advance()
    for row in rows:
        print(json.dumps(row))
    write_json(args.json, provenance() | {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
