"""Times the KV tree's per-token calls: plan and extend over many leaves. Prints one JSON line per case."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from ttc_kernels import _native


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
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return {"min_us": round(min(times), 1), "median_us": round(statistics.median(times), 1)}


def time_case(num_leaves: int, depth: int, repeats: int) -> None:
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
    for name, call in calls.items():
        print(json.dumps({"call": name, **case, **microseconds(call, repeats)}))
    tree.check_integrity()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="at most 2000: extend grows the tree")
    repeats = parser.parse_args().repeats
    for num_leaves in (64, 256, 1024):
        for depth in (1, 3, 6):
            time_case(num_leaves, depth, repeats)


if __name__ == "__main__":
    main()
