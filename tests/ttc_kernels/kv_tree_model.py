"""A plain list model of the KV tree, run beside the real one: every call is made on both and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from ttc_kernels import _native


@dataclass(eq=False)
class Run:
    """Tokens that own whole blocks: what the pool holds, and what is evicted at once."""

    parent: Run | None
    start: int
    tokens: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    children: list[Run] = field(default_factory=list)
    handles: set[int] = field(default_factory=set)
    released: int = 0  # when the last open branch left it

    @property
    def is_live(self) -> bool:
        return bool(self.handles) or any(child.is_live for child in self.children)

    def below(self) -> Iterator[Run]:
        for child in self.children:
            yield child
            yield from child.below()


@dataclass
class Path:
    """What one open branch must look like, whatever became of the others."""

    run: Run
    tokens: list[int]
    slots: list[int]
    cuts: list[int]
    num_reused: int  # tokens that were found in the cache when it was opened


class CheckedTree:
    """A KVTree and its model. Calls that the model expects to fail must fail, and change nothing."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.tree = _native.KVTree(num_blocks, block_size)
        self.num_blocks, self.block_size = num_blocks, block_size
        self.root = Run(None, 0)
        self.paths: dict[int, Path] = {}
        self.clock = 0

    # ---- the pool

    def blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_used(self, *, cached_only: bool = False) -> int:
        runs = (run for run in self.root.below() if not (cached_only and run.is_live))
        return sum(self.blocks_of(len(run.tokens)) for run in runs)

    def is_growing_in_place(self, path: Path) -> bool:
        is_at_cut = path.cuts[-1:] == [len(path.tokens)]
        is_alone = len(path.run.handles) == 1 and not path.run.children
        return is_alone and not is_at_cut and path.run is not self.root

    def num_needed(self, handle: int, count: int) -> int:
        path = self.paths[handle]
        if not self.is_growing_in_place(path):
            return self.blocks_of(count)
        held = len(path.run.tokens)
        return self.blocks_of(held + count) - self.blocks_of(held)

    def remove(self, run: Run) -> None:
        assert not run.children
        assert not run.handles
        run.parent.children.remove(run)

    # ---- calls

    def prefixes(self, tokens: list[int], run: Run) -> Iterator[tuple[int, Run]]:
        """Every cached prefix of whole blocks: its length and the run in which it ends."""
        for child in run.children:
            wanted = tokens[child.start : child.start + len(child.tokens)]
            same = [a == b for a, b in zip(wanted, child.tokens, strict=False)]
            matching = same.index(False) if False in same else len(same)
            whole = matching // self.block_size * self.block_size
            if whole:
                yield child.start + whole, child
            if whole == len(child.tokens):
                yield from self.prefixes(tokens, child)

    def open(self, tokens: list[int], *, reuse: bool = True) -> int:
        found = list(self.prefixes(tokens, self.root)) if reuse else []
        longest = max((length for length, _ in found), default=0)
        handle, num_cached = self.tree.open(np.array(tokens, np.int32), reuse=reuse)
        assert num_cached == longest
        assert handle not in self.paths
        slots = self.slots_of(handle, longest)
        run = self.root
        if longest:  # among equals the tree may choose
            ends = [run for length, run in found if length == longest]
            run = next(r for r in ends if self.path_slots(r)[:longest] == slots)
            if longest < run.start + len(run.tokens):
                run = self.split(run, longest - run.start)
        run.handles.add(handle)
        self.paths[handle] = Path(run, tokens[:longest], slots, [], longest)
        return handle

    def split(self, lower: Run, length: int) -> Run:
        upper = Run(lower.parent, lower.start, lower.tokens[:length], lower.slots[:length], [lower])
        lower.parent.children[lower.parent.children.index(lower)] = upper
        lower.parent, lower.start = upper, lower.start + length
        lower.tokens, lower.slots = lower.tokens[length:], lower.slots[length:]
        return upper

    def extend(self, handles: list[int], tokens: list[list[int]]) -> bool:
        """False where the pool is too small, as both sides say."""
        counts = [len(t) for t in tokens]
        flat = np.array([x for t in tokens for x in t], np.int32)
        arrays = (np.array(handles, np.int32), np.array(counts, np.int32))
        needed = sum(map(self.num_needed, handles, counts))
        available = self.num_blocks - self.num_used() + self.num_used(cached_only=True)
        assert self.tree.blocks_needed(*arrays) == needed
        if needed > available:
            sentence = f"{needed} needed, {available} available"
            with pytest.raises(_native.OutOfBlocks, match=sentence) as error:
                self.tree.extend(*arrays, flat)
            assert (error.value.num_needed, error.value.num_available) == (needed, available)
            return False
        while self.num_blocks - self.num_used() < needed:
            leaves = [run for run in self.root.below() if not run.is_live and not run.children]
            self.remove(min(leaves, key=lambda run: run.released))
        self.tree.extend(*arrays, flat)
        for handle, new in zip(handles, tokens, strict=True):
            if new:
                self.append(handle, new)
        return True

    def append(self, handle: int, tokens: list[int]) -> None:
        path = self.paths[handle]
        if not self.is_growing_in_place(path):
            path.run.handles.remove(handle)
            child = Run(path.run, len(path.tokens), handles={handle})
            path.run.children.append(child)
            path.run = child
        slots = self.slots_of(handle, len(tokens))
        path.run.tokens += tokens
        path.run.slots += slots
        path.tokens += tokens
        path.slots += slots

    def num_own(self, handle: int) -> int:
        """Tokens that the branch may name again."""
        path = self.paths[handle]
        num_appended = len(path.tokens) - max(path.run.start, path.num_reused)
        return num_appended if self.is_growing_in_place(path) else 0

    def most_dropped(self, handle: int) -> int:
        """Tokens that the branch may take back: one that it has appended since its last cut stays."""
        path, num_own = self.paths[handle], self.num_own(handle)
        has_more = path.run.start > max([path.num_reused, *path.cuts])
        return num_own if has_more else max(num_own - 1, 0)

    def rewrite(self, handles: list[int], num_dropped: list[int], tokens: list[list[int]]) -> None:
        counts = np.array([len(t) for t in tokens], np.int32)
        flat = np.array([x for t in tokens for x in t], np.int32)
        self.tree.rewrite(np.array(handles, np.int32), np.array(num_dropped, np.int32), counts, flat)
        for handle, num, new in zip(handles, num_dropped, tokens, strict=True):
            path = self.paths[handle]
            for run in (path.run.tokens, path.tokens):
                del run[len(run) - num :]
                run[len(run) - len(new) :] = new
            for slots in (path.run.slots, path.slots):
                del slots[len(slots) - num :]
            if not path.run.tokens:
                left, path.run = path.run, path.run.parent
                left.handles.remove(handle)
                path.run.handles.add(handle)
                self.remove(left)

    def cut(self, handle: int) -> None:
        self.tree.cut(handle)
        self.note_cut(self.paths[handle])

    def note_cut(self, path: Path) -> None:
        if path.tokens and path.cuts[-1:] != [len(path.tokens)]:
            path.cuts.append(len(path.tokens))

    def fork(self, handle: int, n: int) -> list[int]:
        children = self.tree.fork(handle, n).tolist()
        assert len({*children, *self.paths}) == n + len(self.paths)
        parent = self.paths[handle]
        self.note_cut(parent)
        for child in children:
            self.paths[child] = Path(parent.run, [*parent.tokens], [*parent.slots], [*parent.cuts], parent.num_reused)
            parent.run.handles.add(child)
        return children

    def close(self, handle: int, *, keep: bool = True) -> None:
        self.tree.close(handle, keep=keep)
        run = self.paths.pop(handle).run
        run.handles.remove(handle)
        while run is not self.root and not run.is_live:
            self.clock += 1
            run.released = self.clock
            if not keep and not run.children:
                self.remove(run)
            run = run.parent

    def clear_cache(self) -> None:
        self.tree.clear_cache()
        for run in [*self.root.below()][::-1]:
            if not run.is_live:
                self.remove(run)

    def plan(self, handles: list[int], num_queries: list[int]) -> _native.Plan:
        plan = self.tree.plan(np.array(handles, np.int32), np.array(num_queries, np.int32))
        check_plan(plan, [self.paths[h] for h in handles], num_queries, self.block_size)
        return plan

    # ---- comparison

    def slots_of(self, handle: int, count: int) -> list[int]:
        """Slots of the branch's last tokens, as the tree has them."""
        if count == 0:
            return []
        return self.tree.plan(np.array([handle], np.int32), np.array([count], np.int32)).slots.tolist()

    def path_slots(self, run: Run | None) -> list[int]:
        return [] if run is None else self.path_slots(run.parent) + run.slots

    def check(self) -> None:
        tree = self.tree
        tree.check_integrity()
        assert tree.num_open == len(self.paths)
        assert tree.num_free_blocks == self.num_blocks - self.num_used()
        assert tree.num_cached_blocks == self.num_used(cached_only=True)
        for handle, path in self.paths.items():
            assert tree.num_tokens(handle) == len(path.tokens)
            assert tree.tokens(handle).tolist() == path.tokens
            assert tree.cuts(handle).tolist() == path.cuts
            assert self.slots_of(handle, len(path.tokens)) == path.slots == self.path_slots(path.run)
        runs = [*self.root.below()]
        slots = [slot for run in runs for slot in run.slots]
        assert len(set(slots)) == len(slots)
        owned = [block for run in runs for block in {slot // self.block_size for slot in run.slots}]
        assert len(set(owned)) == len(owned)

        handles = np.array([*self.paths], np.int32)
        assert tree.path_tokens(handles) == sum(len(path.tokens) for path in self.paths.values())
        assert tree.unique_tokens(handles) == len({s for path in self.paths.values() for s in path.slots})


def tiles_of(path: Path, num_seen: int, block_size: int) -> list[tuple[int, int]]:
    """(start, length) of the tiles of a path's first tokens: counted from each of its cuts."""
    starts = [0, *(cut for cut in path.cuts if cut < num_seen)]
    ends = [*starts[1:], num_seen]
    return [
        (first, min(block_size, end - first))
        for start, end in zip(starts, ends, strict=True)
        for first in range(start, end, block_size)
    ]


def check_plan(plan: _native.Plan, paths: list[Path], num_queries: list[int], block_size: int) -> None:
    """Every row sees exactly its own path up to its position, each token once, in order, in its tiles."""
    order, row_start = plan.order.tolist(), plan.row_start.tolist()
    assert sorted(order) == list(range(len(paths)))
    assert row_start == [0, *np.cumsum([num_queries[i] for i in order]).tolist()]
    num_rows = row_start[-1]
    assert len(plan.positions) == len(plan.slots) == len(plan.tokens) == num_rows
    seen: list[list[int]] = [[] for _ in range(num_rows)]
    tiles: list[list[tuple[int, int]]] = [[] for _ in range(num_rows)]
    for row_lo, row_hi, block_offset, num_tokens, causal in plan.items.tolist():
        assert 0 <= row_lo < row_hi <= num_rows
        assert num_tokens > 0
        blocks = plan.blocks[block_offset : block_offset + -(-num_tokens // block_size)].tolist()
        slots = [block * block_size + offset for block in blocks for offset in range(block_size)]
        for row in range(row_lo, row_hi):
            count = num_tokens - (row_hi - 1 - row) * causal
            assert count > 0
            start = len(seen[row])
            tiles[row] += [(start + i, min(block_size, count - i)) for i in range(0, count, block_size)]
            seen[row] += slots[:count]
    for i, branch in enumerate(order):
        path, length = paths[branch], len(paths[branch].tokens)
        positions = range(length - num_queries[branch], length)
        for row, position in zip(range(row_start[i], row_start[i + 1]), positions, strict=True):
            assert plan.positions[row] == position
            assert plan.slots[row] == path.slots[position]
            assert plan.tokens[row] == path.tokens[position]
            assert seen[row] == path.slots[: position + 1]
            assert tiles[row] == tiles_of(path, position + 1, block_size)
