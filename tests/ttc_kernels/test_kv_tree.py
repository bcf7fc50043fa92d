"""The KV tree against a plain model: random calls under pressure, then each promise by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.ttc_kernels.kv_tree_model import CheckedTree
from ttc_kernels import _native

TOKENS = st.lists(st.integers(1, 2), max_size=14)


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


class KVTreeMachine(RuleBasedStateMachine):
    """Any calls in any order, in a pool small enough to evict and to run out."""

    @initialize(num_blocks=st.integers(4, 24), block_size=st.integers(1, 4))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.twin = CheckedTree(num_blocks, block_size)
        self.texts: list[list[int]] = [[]]  # of every branch ever closed
        self.closed: list[int] = []

    def draw_handles(self, data: st.DataObject) -> list[int]:
        handle = st.sampled_from(sorted(self.twin.paths))
        return data.draw(st.lists(handle, min_size=1, max_size=6, unique=True))

    @rule(data=st.data(), more=TOKENS, reuse=st.sampled_from([True, True, True, False]))
    def open(self, data: st.DataObject, more: list[int], reuse: bool) -> None:
        known = self.texts + [path.tokens for path in self.twin.paths.values()]
        text = data.draw(st.sampled_from(known))
        tokens = text[: data.draw(st.integers(0, len(text)))] + more
        handle = self.twin.open(tokens, reuse=reuse)
        rest = tokens[len(self.twin.paths[handle].tokens) :]
        self.twin.extend([handle], [rest])

    @precondition(lambda self: self.twin.paths)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        handles = self.draw_handles(data)
        self.twin.extend(handles, [data.draw(TOKENS) for _ in handles])

    @precondition(lambda self: self.twin.paths)
    @rule()
    def decode_step(self) -> None:
        self.twin.extend([*self.twin.paths], [[1 + i % 2] for i in range(len(self.twin.paths))])

    @precondition(lambda self: any(map(self.twin.num_own, self.twin.paths)))
    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        handles = [handle for handle in self.draw_handles(data) if self.twin.num_own(handle)]
        num_own = [self.twin.num_own(handle) for handle in handles]
        num_dropped = [data.draw(st.integers(0, self.twin.most_dropped(handle))) for handle in handles]
        most = [own - num for own, num in zip(num_own, num_dropped, strict=True)]
        self.twin.rewrite(handles, num_dropped, [data.draw(TOKENS)[:num] for num in most])

    @precondition(lambda self: self.twin.paths)
    @rule(data=st.data(), n=st.integers(1, 3))
    def fork(self, data: st.DataObject, n: int) -> None:
        self.twin.fork(data.draw(st.sampled_from(sorted(self.twin.paths))), n)

    @precondition(lambda self: self.twin.paths)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        self.twin.cut(data.draw(st.sampled_from(sorted(self.twin.paths))))

    @precondition(lambda self: self.twin.paths)
    @rule(data=st.data(), keep=st.sampled_from([True, True, False]))
    def close(self, data: st.DataObject, keep: bool) -> None:
        for handle in self.draw_handles(data)[:3]:
            self.texts.append(self.twin.paths[handle].tokens)
            self.twin.close(handle, keep=keep)
            self.closed.append(handle)

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def use_after_close(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.closed))
        tree = self.twin.tree
        calls = [tree.close, tree.cut, tree.cuts, tree.tokens, tree.num_tokens, lambda h: tree.fork(h, 1)]
        calls += [lambda h: tree.extend(int32(h), int32(0), int32()), lambda h: tree.plan(int32(h), int32(1))]
        for call in calls:
            with pytest.raises(ValueError, match=rf"handle {handle} is not an open branch"):
                call(handle)

    @precondition(lambda self: self.twin.paths)
    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        handles = [h for h in self.draw_handles(data) if self.twin.paths[h].tokens]
        lengths = [len(self.twin.paths[h].tokens) for h in handles]
        self.twin.plan(handles, [data.draw(st.integers(1, length)) for length in lengths])

    @rule()
    def clear_cache(self) -> None:
        self.twin.clear_cache()
        assert self.twin.tree.num_cached_blocks == 0

    @invariant()
    def matches(self) -> None:
        if hasattr(self, "twin"):
            self.twin.check()

    def teardown(self) -> None:
        if not hasattr(self, "twin"):
            return
        for handle in [*self.twin.paths]:
            self.twin.close(handle)
        self.twin.check()
        self.twin.clear_cache()
        self.twin.check()
        assert self.twin.tree.num_free_blocks == self.twin.num_blocks


TestKVTree = KVTreeMachine.TestCase
TestKVTree.settings = settings(
    max_examples=75, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_what_is_rewritten_keeps_its_slots_and_gives_back_whole_blocks():
    twin = CheckedTree(16, 4)
    root = twin.open([])
    twin.extend([root], [[*range(6)]])
    first, second = twin.fork(root, 2)
    twin.extend([first, second], [[*range(10)], [7]])
    free = twin.tree.num_free_blocks
    slots = twin.paths[first].slots[:9]
    twin.rewrite([second, first], [0, 7], [[8], [91, 92]])
    assert twin.tree.tokens(first).tolist() == [*range(6), 0, 91, 92]
    assert twin.tree.tokens(second).tolist() == [*range(6), 8]
    assert twin.slots_of(first, 9) == slots
    assert twin.tree.num_free_blocks == free + 2
    twin.extend([first], [[5] * 6])
    twin.check()


@pytest.mark.parametrize(
    ("num_dropped", "counts", "tokens", "message"),
    [
        ([3], [0], [], r"of the 3 tokens appended to handle \d+ since its last cut one must stay, got 3 to drop and 0"),
        ([1], [3], [1, 2, 3], "got 1 to drop and 3 to name before them"),
        ([-1], [0], [], "got -1 to drop"),
        ([0], [2], [1], "counts add up to 2, got 1 tokens"),
        ([0, 0], [0], [], "num_dropped must have one entry per handle"),
    ],
)
def test_what_cannot_be_rewritten(num_dropped, counts, tokens, message):
    twin = CheckedTree(16, 4)
    branch = twin.open([])
    twin.extend([branch], [[1, 2]])
    twin.cut(branch)
    with pytest.raises(ValueError, match="of the 0 tokens appended"):
        twin.tree.rewrite(int32(branch), int32(0), int32(1), int32(5))
    twin.extend([branch], [[3, 4, 5]])
    with pytest.raises(ValueError, match=message):
        twin.tree.rewrite(int32(branch), int32(*num_dropped), int32(*counts), int32(*tokens))
    twin.check()


def test_what_came_from_the_cache_cannot_be_rewritten():
    """Even where the branch alone holds it and grows in place: its cuts are counted from the end of what it found."""
    twin = CheckedTree(7, 3)
    first = twin.open([])
    twin.extend([first], [[1, 2, 2, 1, 2]])
    branch = twin.open([1, 2, 2, 9])
    twin.close(first, keep=False)
    twin.clear_cache()
    twin.extend([branch], [[9]])
    for num_dropped, counts, tokens in ((1, 0, []), (3, 0, []), (0, 2, [1, 2])):
        with pytest.raises(ValueError, match="of the 1 tokens appended"):
            twin.tree.rewrite(int32(branch), int32(num_dropped), int32(counts), int32(*tokens))
    twin.rewrite([branch], [0], [[8]])
    twin.fork(branch, 2)
    twin.extend([*twin.paths], [[1]] * 3)
    twin.check()


def test_a_token_is_taken_back_where_another_branch_has_found_all_before_it():
    twin = CheckedTree(8, 4)
    (branch,) = twin.fork(twin.open([]), 1)
    twin.extend([branch], [[1, 2, 3, 4, 5]])
    twin.open([1, 2, 3, 4, 9])
    free = twin.tree.num_free_blocks
    with pytest.raises(ValueError, match="got 2 to drop and 0"):
        twin.tree.rewrite(int32(branch), int32(2), int32(0), int32())
    twin.rewrite([branch], [1], [[]])
    assert twin.tree.tokens(branch).tolist() == [1, 2, 3, 4]
    assert twin.tree.num_free_blocks == free + 1
    twin.check()
    twin.extend([branch], [[6, 7]])
    twin.check()
    with pytest.raises(ValueError, match="got 3 to drop and 0"):
        twin.tree.rewrite(int32(branch), int32(3), int32(0), int32())


def test_open_reuses_whole_blocks_from_the_start_of_the_prompt():
    twin = CheckedTree(16, 4)
    first = twin.open([])
    twin.extend([first], [[*range(10)]])
    other = twin.open([*range(10), 99])
    assert len(twin.paths[other].tokens) == 8
    assert twin.paths[other].slots == twin.paths[first].slots[:8]
    diverging = twin.open([0, 1, 2, 3, 4, 99, 6, 7])
    assert len(twin.paths[diverging].tokens) == 4
    assert len(twin.paths[twin.open([*range(10)], reuse=False)].tokens) == 0
    twin.extend([other, diverging, first], [[50, 51], [60], [70, 71]])
    twin.check()


def test_open_does_not_go_past_a_cut_inside_a_block_but_past_one_at_its_end():
    twin = CheckedTree(16, 4)
    for length, expected in [(6, 4), (8, 12)]:
        text = [length, *range(1, 12)]
        branch = twin.open(text)
        twin.extend([branch], [text[:length]])
        twin.cut(branch)
        twin.extend([branch], [text[length:]])
        again = twin.open(text)
        assert len(twin.paths[again].tokens) == expected
        assert twin.tree.cuts(again).tolist() == []
        assert twin.tree.cuts(branch).tolist() == [length]
        twin.check()


def test_fork_takes_no_block_and_every_side_starts_a_node():
    twin = CheckedTree(16, 4)
    parent = twin.open([])
    twin.extend([parent], [[1, 2, 3, 4, 5]])
    free = twin.tree.num_free_blocks
    children = twin.fork(parent, 3)
    assert twin.tree.num_free_blocks == free
    twin.extend([parent, *children], [[9]] * 4)
    assert twin.tree.num_free_blocks == free - 4
    for handle in (parent, *children):
        assert twin.tree.cuts(handle).tolist() == [5]
    twin.check()


@pytest.mark.parametrize("is_closed_early", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_cuts_do_not_depend_on_when_other_branches_close(is_closed_early, keep):
    twin = CheckedTree(32, 4)
    branch = twin.open([])
    for step in ([1, 2, 3], [4, 5, 6, 7, 8], [9]):
        twin.extend([branch], [step])
        others = twin.fork(branch, 2)
        if not is_closed_early:
            twin.extend(others, [[7], [8]])
        for other in others:
            twin.close(other, keep=keep)
        if is_closed_early:
            twin.clear_cache()
    assert twin.tree.cuts(branch).tolist() == [3, 8, 9]
    twin.extend([branch], [[1]])
    assert twin.tree.cuts(branch).tolist() == [3, 8, 9]
    twin.plan([branch], [10])
    twin.check()


def test_a_recomputed_branch_gets_its_cuts_back():
    twin = CheckedTree(32, 4)
    branch = twin.open([])
    for step in ([1, 2, 3, 4, 5], [6, 7, 8], [9, 10]):
        twin.extend([branch], [step])
        twin.cut(branch)
    tokens, cuts = twin.tree.tokens(branch).tolist(), twin.tree.cuts(branch).tolist()
    twin.close(branch)
    again = twin.open(tokens[: cuts[0]])
    assert len(twin.paths[again].tokens) == 4
    for cut in cuts:
        twin.extend([again], [tokens[len(twin.paths[again].tokens) : cut]])
        twin.cut(again)
    assert twin.tree.cuts(again).tolist() == cuts
    assert twin.tree.tokens(again).tolist() == tokens


def test_eviction_takes_the_least_recently_released_and_leaves_first():
    twin = CheckedTree(6, 4)
    texts = {name: [name] * 8 for name in (1, 2, 3)}
    for text in texts.values():
        handle = twin.open(text)
        twin.extend([handle], [text])
        twin.close(handle)
    assert (twin.tree.num_free_blocks, twin.tree.num_cached_blocks) == (0, 6)
    twin.close(twin.open(texts[1]))  # used again: 2 is now the oldest
    new = twin.open([])
    twin.extend([new], [[5]])
    assert twin.tree.num_free_blocks == 1
    cached = {name: len(twin.paths[twin.open(text)].tokens) for name, text in texts.items()}
    assert cached == {1: 8, 2: 0, 3: 8}

    twin = CheckedTree(4, 4)
    trunk = twin.open([])
    twin.extend([trunk], [[1] * 4])
    leaf = twin.fork(trunk, 1)[0]
    twin.extend([leaf], [[2] * 4])
    twin.close(trunk)
    twin.close(leaf)
    new = twin.open([])
    twin.extend([new], [[3] * 9])
    assert len(twin.paths[twin.open([1] * 4 + [2] * 4)].tokens) == 4


def test_close_without_keep_frees_what_only_that_branch_held():
    twin = CheckedTree(8, 4)
    parent = twin.open([])
    twin.extend([parent], [[1] * 5])
    child, sibling = twin.fork(parent, 2)
    twin.extend([child, sibling], [[2] * 5, [3]])
    twin.close(child, keep=False)
    assert (twin.tree.num_free_blocks, twin.tree.num_cached_blocks) == (5, 0)
    twin.close(sibling)
    assert (twin.tree.num_free_blocks, twin.tree.num_cached_blocks) == (5, 1)
    twin.close(parent, keep=False)  # a cached node stands on it
    assert (twin.tree.num_free_blocks, twin.tree.num_cached_blocks) == (5, 3)
    twin.check()


def test_out_of_blocks_names_both_numbers_and_changes_nothing():
    twin = CheckedTree(4, 4)
    old = twin.open([])
    twin.extend([old], [[7] * 4])
    twin.close(old)
    a, b = twin.open([]), twin.open([])
    twin.extend([a], [[1, 2, 3]])
    assert not twin.extend([a, b], [[4], [5] * 13])
    twin.check()
    assert (twin.tree.num_free_blocks, twin.tree.num_cached_blocks) == (2, 1)
    assert issubclass(_native.OutOfBlocks, RuntimeError)
    assert twin.extend([a, b], [[4], [5] * 12])
    assert (twin.tree.num_free_blocks, twin.tree.num_cached_blocks) == (0, 0)
    twin.check()


def test_closing_twice_raises_even_when_the_entry_is_used_again():
    tree = _native.KVTree(4, 16)
    stale, _ = tree.open(int32())
    tree.close(stale)
    for _ in range(3000):
        handle, _ = tree.open(int32())
        assert handle != stale
        with pytest.raises(ValueError, match=rf"handle {stale} is not an open branch"):
            tree.close(stale)
        tree.close(handle)
    assert tree.num_open == 0
    tree.check_integrity()


def test_a_long_chain_is_closed_and_planned_without_recursion():
    tree = _native.KVTree(60_000, 1)
    handle, _ = tree.open(int32())
    for _ in range(50_000):
        tree.cut(handle)
        tree.extend(int32(handle), int32(1), int32(3))
    assert len(tree.cuts(handle)) == 49_999
    assert len(tree.plan(int32(handle), int32(1)).items) == 50_000
    tree.check_integrity()
    tree.close(handle, keep=False)
    assert tree.num_free_blocks == 60_000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tree, h: tree.extend(int32(h), int32(1, 1), int32(5)), r"counts .* got 2 for 1 handles"),
        (lambda tree, h: tree.extend(int32(h), int32(-1), int32()), r"counts must be >= 0, got -1"),
        (lambda tree, h: tree.extend(int32(h), int32(2), int32(5)), r"counts add up to 2, got 1 tokens"),
        (lambda tree, h: tree.extend(int32(h, h), int32(1, 1), int32(5, 5)), r"handle 0 is named twice"),
        (lambda tree, h: tree.extend(int32(h, 77), int32(1, 1), int32(5, 5)), r"handle 77 is not an open"),
        (lambda tree, h: tree.extend(int32(-1), int32(1), int32(5)), r"handle -1 is not an open"),
        (lambda tree, h: tree.extend(int32(h), int32(1), np.array([1.5])), r"tokens must be .*float64"),
        (lambda tree, h: tree.extend(int32(h), int32(1), np.array([2**40])), r"must fit.*1099511627776"),
        (lambda tree, h: tree.extend(int32(h), int32(1), int32(5)[None]), r"one dimension, got 2"),
        (lambda tree, h: tree.open("prompt"), r"tokens must be int32"),
        (lambda tree, h: tree.fork(h, 0), r"children must be >= 1, got 0"),
        (lambda tree, h: tree.fork(h, 1 << 18), r"at most 262144 branches.*got 262144 more"),
        (lambda tree, h: tree.plan(int32(h), int32(0)), r"num_queries .* 3 tokens, got 0"),
        (lambda tree, h: tree.plan(int32(h), int32(4)), r"num_queries .* 3 tokens, got 4 for handle 0"),
        (lambda tree, h: tree.plan(int32(h), int32()), r"num_queries .* got 0 for 1 handles"),
        (lambda tree, h: tree.plan(int32(h, h), int32(1, 1)), r"handle 0 is named twice"),
    ],
)
def test_bad_values_raise_and_change_nothing(call, message):
    tree = _native.KVTree(4, 4)
    handle, _ = tree.open(int32())
    tree.extend([handle], [3], [1, 2, 3])
    with pytest.raises(ValueError, match=message):
        call(tree, handle)
    assert (tree.tokens(handle).tolist(), tree.num_open, tree.num_free_blocks) == ([1, 2, 3], 1, 3)
    assert tree.cuts(handle).tolist() == []
    tree.check_integrity()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 16), "num_blocks must be >= 1, got 0"),
        ((4, 0), "block_size must be >= 1, got 0"),
        ((1 << 28, 16), "31 bits, got 268435456 blocks of 16"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        _native.KVTree(*size)
