"""A clipped plan shows every row the last tokens of its path, each where it lies or in a copy, once and in order."""

import random

import numpy as np
import pytest
import torch

from engine.model.window import NUM_SCRATCH_BLOCKS, clip
from ttc_kernels import _native
from ttc_kernels.tree_attention.reference import visible_slots

BLOCK = 16
NUM_BLOCKS = 400


def random_plan(seed: int):
    """A plan of branches of a random tree, with one to all of their tokens as queries."""
    rng = random.Random(seed)
    tree = _native.KVTree(NUM_BLOCKS - NUM_SCRATCH_BLOCKS, BLOCK)
    handles = [tree.open(np.zeros(0, np.int32))[0] for _ in range(2)]

    def grow(grown: list[int], most: int) -> None:
        counts = [rng.randint(1, most) for _ in grown]
        tokens = np.array([rng.randrange(1000) for _ in range(sum(counts))], np.int32)
        tree.extend(np.array(grown, np.int32), np.array(counts, np.int32), tokens)

    grow(handles, 70)
    for most in (40, 20, 50):
        forked = rng.choice(handles)
        new = tree.fork(forked, rng.randint(1, 4)).tolist()
        grow(new, most)
        handles += new
    chosen = rng.sample(handles, rng.randint(1, len(handles)))
    queries = [rng.choice([1, 1, rng.randint(1, tree.num_tokens(handle))]) for handle in chosen]
    return tree, tree.plan(np.array(chosen, np.int32), np.array(queries, np.int32))


def seen(part) -> list[list[int]]:
    """Slots that each row of a part sees, copies counted as what they are copies of."""
    origin = {
        (int(b) * BLOCK + int(i)): int(a) * BLOCK + int(j)
        for a, j, b, i in zip(*part.source, *part.target, strict=True)
    }
    rows = visible_slots(part, BLOCK, part.row_hi - part.row_lo)
    return [[origin.get(slot, slot) for slot in slots.tolist()] for slots in rows]


@pytest.mark.parametrize("window", [1, 2, 3, 15, 16, 17, 33, 64, 1000])
def test_every_row_sees_its_window(window):
    num_clipped = num_parts = 0
    for seed in range(12):
        tree, plan = random_plan(seed)
        whole = visible_slots(plan, BLOCK, len(plan.positions))
        parts = clip(plan, window, BLOCK, NUM_BLOCKS)
        if parts is None:
            assert plan.positions.max() < window
            continue
        num_clipped += 1
        num_parts = max(num_parts, len(parts))
        assert [part.row_lo for part in parts] == [0, *(part.row_hi for part in parts[:-1])]
        assert parts[-1].row_hi == len(plan.positions)
        for part in parts:
            assert len(set(part.target[0].tolist())) <= NUM_SCRATCH_BLOCKS
            assert part.items[:, 3].min() >= 1
            assert seen(part) == [slots.tolist()[-window:] for slots in whole[part.row_lo : part.row_hi]]
        tree.check_integrity()
    assert num_clipped == 0 if window == 1000 else num_clipped > 5
    assert num_parts > 1 or window > 17


def test_copies_reach_the_caches():
    """Tokens land in the scratch blocks, in caches of either layout, and nothing else changes."""
    plan = next(plan for seed in range(25) for _, plan in [random_plan(seed)] if len(plan.positions) > 40)
    part = clip(plan, 21, BLOCK, NUM_BLOCKS)[0]
    shape = (NUM_BLOCKS, 2, BLOCK, 4)
    values = torch.arange(NUM_BLOCKS * 2 * BLOCK * 4).float().view(shape)
    transposed = values.transpose(-1, -2).contiguous().transpose(-1, -2)
    copies = values.clone(), transposed
    part.copy_edges(*copies)
    assert torch.equal(*copies)
    for block, offset, to_block, to_offset in zip(*part.source, *part.target, strict=True):
        assert torch.equal(copies[0][to_block, :, to_offset], values[block, :, offset])
    kept = NUM_BLOCKS - NUM_SCRATCH_BLOCKS
    assert torch.equal(copies[0][:kept], values[:kept])


def test_rows_that_begin_at_the_same_token_share_a_copy():
    tree = _native.KVTree(NUM_BLOCKS - NUM_SCRATCH_BLOCKS, BLOCK)
    trunk = tree.open(np.zeros(0, np.int32))[0]
    tree.extend(np.array([trunk], np.int32), np.array([60], np.int32), np.arange(60, dtype=np.int32))
    beams = tree.fork(trunk, 50)
    tree.extend(beams, np.full(50, 3, np.int32), np.zeros(150, np.int32))
    parts = clip(tree.plan(beams, np.ones(50, np.int32)), 40, BLOCK, NUM_BLOCKS)
    assert len(parts) == 1
    assert len(parts[0].source[0]) == 9  # tokens 23..31
    assert parts[0].items[:2, [0, 1, 3, 4]].tolist() == [[0, 50, 9, 0], [0, 50, 28, 0]]
