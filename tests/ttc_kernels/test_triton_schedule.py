"""The GPU's schedule of a plan: what its work items and merges make a row see is what the plan says."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ttc_kernels.tree_attention import cases, schedule
from ttc_kernels.tree_attention.reference import visible_slots
from ttc_kernels.tree_attention.schedule import NARROW, WIDE, schedule_of

CPU = torch.device("cpu")


@dataclass(eq=False)
class FakePlan:
    items: np.ndarray
    blocks: np.ndarray


def seen_slots(made: schedule.Schedule, block_size: int, num_rows: int, group: int) -> list[list[int]]:
    """For each row the slots of the partials that it merges, in order; checks that all of its heads agree."""
    partials: dict[int, dict[int, list[int]]] = {}
    blocks = made.blocks.tolist()
    costs = []
    for row_lo, num, first, offset, key_lo, key_hi, limit, causal, partial, is_wide in made.work.tolist():
        tile = WIDE if is_wide else NARROW
        costs.append((key_hi - key_lo) * tile)
        for packed in range(first, min(first + tile, num * group)):
            row, head = divmod(packed, group)
            keys = range(key_lo, min(key_hi, limit + causal * row))
            if len(keys):
                assert partials.setdefault(partial + row, {}).setdefault(head, []) == [], "written twice"
                slots = [blocks[offset + key // block_size] * block_size + key % block_size for key in keys]
                partials[partial + row][head] = [row_lo + row, *slots]
    assert costs == sorted(costs, reverse=True)
    assert sorted(partials) == list(range(made.num_partials))
    start, sources = made.merge_start.tolist(), made.merge_from.tolist()
    seen = []
    for row in range(num_rows):
        slots: list[int] = []
        for source in sources[start[row] : start[row + 1]]:
            heads = partials.pop(source)
            assert len(heads) == group
            assert all(head == [row, *heads[0][1:]] for head in heads.values())
            slots += heads[0][1:]
        seen.append(slots)
    assert not partials, "computed but not merged"
    return seen


MORE = [
    cases.Case(6, 2, 16, torch.float32, ((1, 300), (3, 20))),
    cases.Case(6, 2, 16, torch.float32, ((1, 530),), num_queries=300, block_size=32),
    cases.Case(8, 1, 16, torch.float32, ((1, 70), (40, 1)), num_queries=3),
]


@pytest.mark.parametrize("max_keys", [16, 32, 256])
def test_every_row_sees_its_path_once_and_in_order(max_keys, monkeypatch):
    monkeypatch.setattr(schedule, "MAX_KEYS", max_keys)
    for case in [case for case in cases.tiny() if case.dtype is torch.float32] + MORE:
        plan, num_blocks = case.plan(seed=3)
        num_rows, group = len(plan.positions), case.num_heads // case.num_kv_heads
        made = schedule_of(plan, num_rows + 2, num_blocks, case.block_size, group, CPU)
        expected = [slots.tolist() for slots in visible_slots(plan, case.block_size, num_rows)]
        assert seen_slots(made, case.block_size, num_rows + 2, group) == [*expected, [], []]


def test_long_nodes_are_split_unless_their_rows_fill_the_gpu():
    few, many = MORE[0], replace(MORE[0], levels=((1, 300), (200, 20)))
    for case, num_runs in ((few, 2), (many, 1)):
        plan, num_blocks = case.plan()
        made = schedule_of(plan, len(plan.positions), num_blocks, 16, 3, CPU)
        trunk = made.work[made.work[:, 1] == len(plan.positions)]
        assert len(trunk[:, 4].unique()) == num_runs
        assert set(trunk[:, 9].tolist()) == {int(case is many)}


def test_a_schedule_is_made_once_a_plan_and_goes_with_it():
    case = cases.Case(6, 2, 16, torch.float32, ((1, 20), (3, 5)))
    plan, num_blocks = case.plan()
    made = schedule_of(plan, 3, num_blocks, 16, 3, CPU)
    assert schedule_of(plan, 3, num_blocks, 16, 3, CPU) is made
    assert schedule_of(plan, 3, num_blocks, 16, 1, CPU) is not made
    assert schedule_of(case.plan()[0], 3, num_blocks, 16, 3, CPU) is not made
    before = len(schedule._SCHEDULES)
    del plan
    gc.collect()
    assert len(schedule._SCHEDULES) < before


@pytest.mark.parametrize(
    ("items", "blocks", "shown"),
    [
        ([[0, 1, 0, 20, 0], [0, 2, 0, 20, 0]], (0, 1), r"item 1 \(0, 2, 0, 20, 0\) has rows outside q"),
        ([[1, 1, 0, 20, 0]], (0, 1), "has rows outside q"),
        ([[0, 1, 1, 20, 0]], (0, 1), "exceeds the plan's blocks"),
        ([[0, 1, -1, 20, 0]], (0, 1), "exceeds the plan's blocks"),
        ([[0, 1, 0, 0, 0]], (0, 1), "exceeds the plan's blocks"),
        ([[0, 1, 0, 20, 0]], (0, 99), "names a block outside the cache"),
        ([[0, 1, 0, 20, 0]], (0, -1), "names a block outside the cache"),
    ],
)
def test_refuses_a_plan_that_points_outside(items, blocks, shown):
    plan = FakePlan(np.array(items, np.int32), np.array(blocks, np.int32))
    with pytest.raises(ValueError, match=rf"tree_attention: .*{shown}"):
        schedule_of(plan, 1, 2, 16, 1, CPU)
