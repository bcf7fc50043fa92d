"""The attention plan: each row sees its own path, and a shared node is one item for all rows below it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ttc_kernels.kv_tree_model import CheckedTree
from ttc_kernels import _native


def grow(twin: CheckedTree, handle: int, count: int) -> None:
    start = len(twin.paths[handle].tokens)
    assert twin.extend([handle], [[*range(start, start + count)]])


@pytest.fixture
def beams() -> tuple[CheckedTree, int, list[int]]:
    """A trunk of 10 tokens and four branches of 3 each; blocks of 4."""
    twin = CheckedTree(64, 4)
    trunk = twin.open([])
    grow(twin, trunk, 10)
    branches = twin.fork(trunk, 4)
    for branch in branches:
        grow(twin, branch, 3)
    return twin, trunk, branches


def test_decode_reads_the_trunk_once(beams):
    twin, _, branches = beams
    plan = twin.plan(branches, [1] * 4)
    assert plan.items[:, [0, 1, 3, 4]].tolist() == [[0, 4, 10, 0]] + [[i, i + 1, 3, 0] for i in range(4)]
    assert plan.order.tolist() == [0, 1, 2, 3]
    assert plan.positions.tolist() == [12] * 4
    assert plan.tokens.tolist() == [12] * 4


def test_a_step_of_many_tokens_per_branch(beams):
    twin, _, branches = beams
    plan = twin.plan(branches, [3] * 4)
    assert plan.items[:, [0, 1, 3, 4]].tolist() == [[0, 12, 10, 0]] + [[i, i + 3, 3, 1] for i in (0, 3, 6, 9)]


def test_queries_that_span_the_trunk_and_the_branch(beams):
    twin, _, branches = beams
    plan = twin.plan(branches[:2], [1, 6])
    assert plan.items[:, [0, 1, 3, 4]].tolist() == [
        [0, 1, 10, 0],
        [1, 4, 10, 1],
        [4, 7, 10, 0],
        [0, 1, 3, 0],
        [4, 7, 3, 1],
    ]
    assert plan.positions.tolist() == [12, 7, 8, 9, 10, 11, 12]


def test_chunked_prefill(beams):
    twin, trunk, branches = beams
    plan = twin.plan([trunk], [10])
    assert plan.items.tolist() == [[0, 10, 0, 10, 1]]
    grow(twin, branches[0], 6)
    plan = twin.plan([branches[0]], [6])
    assert plan.items[:, [0, 1, 3, 4]].tolist() == [[0, 6, 10, 0], [0, 6, 9, 1]]


def test_ancestor_and_descendant(beams):
    twin, trunk, branches = beams
    plan = twin.plan([branches[0], trunk, branches[1]], [2, 1, 1])
    assert plan.order.tolist() == [1, 0, 2]
    assert plan.items[0].tolist() == [0, 4, 0, 10, 0]
    twin.plan([branches[0], trunk], [2, 4])
    twin.plan([branches[0], trunk], [5, 4])


def test_branches_on_the_same_node(beams):
    twin, trunk, branches = beams
    same = [trunk, *twin.fork(trunk, 2)]
    plan = twin.plan(same, [1, 1, 1])
    assert plan.items.tolist() == [[0, 3, 0, 10, 0]]
    twin.plan([*same, branches[2]], [3, 1, 10, 1])


def test_one_token_nodes():
    twin = CheckedTree(16, 4)
    branch = twin.open([])
    for _ in range(5):
        grow(twin, branch, 1)
        twin.cut(branch)
    other = twin.fork(branch, 1)[0]
    grow(twin, other, 1)
    for num_queries in range(1, 6):
        twin.plan([branch], [num_queries])
        twin.plan([branch, other], [num_queries, 6])


def test_prefix_split_leaves_the_other_branches_right(beams):
    twin, trunk, branches = beams
    before = twin.plan(branches, [1] * 4)
    split = twin.open([*range(9)])
    grow(twin, split, 2)
    after = twin.plan(branches, [1] * 4)
    assert len(after.items) == len(before.items) + 1
    assert after.slots.tolist() == before.slots.tolist()
    twin.plan([split, trunk, *branches], [3, 10, 1, 2, 3, 13])
    twin.check()


def test_a_plan_stays_as_it_was_while_it_is_held(beams):
    twin, trunk, branches = beams
    handles, ones = np.array(branches, np.int32), np.ones(4, np.int32)
    held = [twin.tree.plan(handles[: 1 + i % 4], ones[: 1 + i % 4]) for i in range(20)]
    for i, plan in enumerate(held):
        assert plan.order.tolist() == [*range(1 + i % 4)]
    items = twin.tree.plan(handles, ones).items  # the array alone keeps it too
    expected = items.tolist()
    held.clear()
    for _ in range(20):
        twin.tree.plan(np.array([trunk], np.int32), np.array([5], np.int32))
    assert items.tolist() == expected


def test_plan_memory_is_used_again(beams):
    twin, _, branches = beams
    handles, ones = np.array(branches, np.int32), np.ones(4, np.int32)
    addresses = {twin.tree.plan(handles, ones).items.ctypes.data for _ in range(50)}
    assert len(addresses) == 1


def test_no_branches():
    plan = _native.KVTree(4, 4).plan([], [])
    assert (len(plan.order), plan.row_start.tolist(), plan.items.shape) == (0, [0], (0, 5))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), block_size=st.integers(1, 5))
def test_random_trees(data, block_size):
    """Whatever the tree and the mix of rows: the visibility is the model's, alone and in any batch."""
    twin = CheckedTree(400, block_size)
    texts: list[list[int]] = [[]]
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["open", "fork", "grow"])) if twin.paths else "open"
        if kind == "open":
            handle = twin.open(data.draw(st.sampled_from(texts)))
        else:
            handle = data.draw(st.sampled_from(sorted(twin.paths)))
        if kind == "fork":
            twin.fork(handle, data.draw(st.integers(1, 3)))
        elif not (twin.extend([handle], [[*range(data.draw(st.integers(1, 9)))]])):
            raise AssertionError("the pool is large enough")
        texts += [path.tokens[:] for path in twin.paths.values()]
    handles = data.draw(st.permutations([h for h in twin.paths if twin.paths[h].tokens]))
    limits = [len(twin.paths[h].tokens) for h in handles]
    num_queries = [data.draw(st.integers(1, limit)) for limit in limits]
    twin.plan(handles, num_queries)
    for handle, count in zip(handles, num_queries, strict=True):
        twin.plan([handle], [count])
