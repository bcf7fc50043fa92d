"""The work list of the GPU against its plan: all that the definition sees, once each, where merging finds it."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ttc_kernels.cuda_library import ROOT, struct_fields
from ttc_kernels import _native
from ttc_kernels.tree_attention import cases
from ttc_kernels.tree_attention.reference import visible_slots
from ttc_kernels.tree_attention.work import WorkHeader, WorkList, WorkUnit

WORK_H = ROOT / "csrc" / "cuda" / "work.h"

DIRECT = -1
ALL_TOKENS = 1 << 30


def decode(work: np.ndarray) -> SimpleNamespace:
    """The parts of a work list, as csrc/cuda/work.h lays them out."""
    header = {field: int(work[field]) for field in WorkHeader}
    units_at, num_units = header[WorkHeader.UNITS_AT], header[WorkHeader.NUM_UNITS]
    start_at, num_rows = header[WorkHeader.MERGE_START_AT], header[WorkHeader.NUM_ROWS]
    assert header[WorkHeader.NUM_INTS] == len(work)
    assert units_at % 4 == 0  # a unit is read 16 bytes at a time
    num_slots, writers_at = header[WorkHeader.NUM_SLOTS], header[WorkHeader.WRITERS_AT]
    assert header[WorkHeader.ARRIVED_AT] == writers_at + num_rows
    assert not work[writers_at + num_rows :].any(), "counters start at 0"
    assert (WorkList(work).num_units, WorkList(work).num_slots) == (num_units, num_slots)
    num_long = header[WorkHeader.NUM_LONG_UNITS]
    assert 0 <= num_long <= num_units
    assert 1 <= header[WorkHeader.SHORT_AT_ONCE] <= 4
    assert header[WorkHeader.QUEUE_AT] == len(work) - 2
    return SimpleNamespace(
        num_long=num_long,
        units=work[units_at : units_at + len(WorkUnit) * num_units].reshape(-1, len(WorkUnit)),
        blocks=work[header[WorkHeader.BLOCKS_AT] : start_at],
        merge_start=work[start_at : start_at + num_rows + 1],
        merge_slots=work[header[WorkHeader.MERGE_SLOTS_AT] : writers_at],
        writers=work[writers_at : writers_at + num_rows],
        arrived=work[writers_at + num_rows : -2],
        num_slots=num_slots,
        num_rows=num_rows,
    )


@pytest.mark.parametrize("fields", [WorkHeader, WorkUnit], ids=lambda fields: fields.__name__)
def test_python_and_cpp_agree_on_the_fields(fields):
    assert struct_fields(WORK_H.read_text(), fields.__name__) == [
        ("int32_t", field.name.lower()) for field in sorted(fields)
    ]
    assert sorted(fields) == list(range(len(fields)))


def make(plan, num_rows: int, num_heads: int, num_kv_heads: int, num_blocks: int, block_size: int, **options):
    sizes = {"num_rows": num_rows, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    return decode(_native.attention_work(plan, **sizes, num_blocks=num_blocks, block_size=block_size, **options))


def check(plan, num_rows: int, group: int, num_blocks: int, block_size: int, **options) -> SimpleNamespace:
    """Walks the units one packed row and one key at a time, as the kernel's definition reads."""
    work = make(plan, num_rows, 2 * group, 2, num_blocks, block_size, **options)
    lengths, packed = work.units[:, WorkUnit.KV_HI] - work.units[:, WorkUnit.KV_LO], work.units[:, WorkUnit.NUM_PACKED]
    costs = (lengths * np.where(packed > 64, 3, 2) + packed)[: work.num_long]
    assert (np.diff(costs) <= 0).all(), "the costliest of the units that take a block come first"
    is_short = (packed <= 16) & (lengths <= 32)
    assert not is_short[: work.num_long].any()
    assert ((packed <= 16) & (lengths <= 128))[work.num_long :].all()
    seen: dict[tuple[int, int, int], list[int]] = {}  # (row, head in the group, partial slot) -> cache slots
    num_writers = [0] * num_rows
    assert len(work.arrived) == 2 * num_rows
    for row_lo, packed_lo, num_packed, block_offset, kv_lo, kv_hi, causal_add, slot_base in work.units.tolist():
        assert 0 < num_packed <= 128
        assert kv_lo % 64 == 0
        assert kv_lo < kv_hi
        for row in range(row_lo + packed_lo // group, row_lo + (packed_lo + num_packed - 1) // group + 1):
            num_writers[row] += slot_base != DIRECT
        for packed in range(packed_lo, packed_lo + num_packed):
            row, head = row_lo + packed // group, packed % group
            limit = min(kv_hi, row + causal_add)
            slots = [
                int(work.blocks[block_offset + key // block_size]) * block_size + key % block_size
                for key in range(kv_lo, limit)
            ]
            cell = (row, head, DIRECT if slot_base == DIRECT else slot_base + row - row_lo)
            assert cell not in seen, "two units write the same partial result"
            assert slot_base == DIRECT or cell[2] < work.num_slots
            seen[cell] = slots
    expected = visible_slots(plan, block_size, num_rows)
    for row in range(num_rows):
        parts = work.merge_slots[work.merge_start[row] : work.merge_start[row + 1]].tolist()
        assert len(set(parts)) == len(parts)
        assert DIRECT not in parts or len(parts) == 1
        for head in range(group):
            merged = [slot for part in parts for slot in seen.pop((row, head, part))]
            assert merged == expected[row].tolist()
    assert not any(seen.values()), "a partial result that nothing merges"
    assert work.writers.tolist() == num_writers, "a row is merged when so many units have come to it"
    return work


TREES = [
    cases.Case(2, 1, 64, None, ((1, 1),)),
    cases.Case(2, 1, 64, None, ((1, 200),), 1),
    cases.Case(2, 1, 64, None, ((1, 150),), 150, 32),
    cases.Case(2, 1, 64, None, ((1, 70), (3, 9), (2, 5)), 1, 16, 4),
    cases.Case(2, 1, 64, None, ((1, 37), (3, 5), (2, 9)), 20, 64, 4),
    cases.Case(2, 1, 64, None, ((1, 500), (5, 33)), 11, 16, 9),
]


@pytest.mark.parametrize("split_tokens", [0, 64, 100, 1024])
@pytest.mark.parametrize("group", [1, 3, 6, 16])
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree.levels).replace(" ", ""))
def test_covers_what_the_rows_see_once(tree, group, split_tokens):
    plan, num_blocks = tree.plan(seed=group)
    check(plan, len(plan.positions), group, num_blocks, tree.block_size, split_tokens=split_tokens)


@settings(max_examples=60)
@given(data=st.data())
def test_covers_random_plans(data):
    """Items of any row range, causal or not, also such whose first rows see nothing of them."""
    num_rows, group = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 7))
    block_size = data.draw(st.sampled_from([16, 32]))
    items, blocks = [], []
    for _ in range(data.draw(st.integers(0, 5))):
        row_lo = data.draw(st.integers(0, num_rows - 1))
        row_hi = data.draw(st.integers(row_lo + 1, num_rows))
        num_tokens = data.draw(st.integers(1, 300))
        items.append([row_lo, row_hi, len(blocks), num_tokens, data.draw(st.integers(0, 1))])
        first = len(blocks)
        blocks += range(first, first + -(-num_tokens // block_size))
    plan = SimpleNamespace(items=np.array(items, np.int32).reshape(-1, 5), blocks=np.array(blocks, np.int32))
    split = data.draw(st.sampled_from([0, 64, 128]))
    check(plan, num_rows, group, len(blocks), block_size, split_tokens=split)


def test_a_row_with_one_part_needs_no_merging():
    plan, num_blocks = TREES[2].plan()
    work = check(plan, 150, 1, num_blocks, 32, split_tokens=192)
    assert work.num_slots == 0
    assert (work.units[:, WorkUnit.SLOT_BASE] == DIRECT).all()
    split = check(plan, 150, 1, num_blocks, 32, split_tokens=64)
    assert split.num_slots > 150
    # Rows before a split see nothing of it, so tiles of such rows make no unit.
    assert len(split.units) == 2 + 3


def test_a_long_node_is_split_until_there_is_work_for_all():
    plan, num_blocks = cases.Case(2, 1, 64, None, ((1, 8192),)).plan()
    sizes = [len(check(plan, 1, 1, num_blocks, 16, num_wanted=wanted).units) for wanted in (1, 16, 264)]
    assert sizes == [1, 8, 64]  # two KV heads each; no unit below 128 tokens


def work_of(case: cases.Case, **options) -> SimpleNamespace:
    plan, num_blocks = case.plan()
    return make(plan, len(plan.positions), case.num_heads, case.num_kv_heads, num_blocks, case.block_size, **options)


@pytest.mark.parametrize(("leaves", "most_tokens"), [(8, 32), (528, 128)])
def test_short_leaves_take_a_warp_each(leaves, most_tokens):
    """Up to 32 tokens always, up to 128 where there are enough of them for all warps."""
    for num_tokens in (16, 32, 33, 128, 129):
        work = work_of(cases.Case(8, 2, 64, None, ((1, 300), (leaves, num_tokens))))
        num_long_leaves = (work.units[: work.num_long, WorkUnit.NUM_PACKED] <= 16).sum()
        assert (num_long_leaves > 0) == (num_tokens > most_tokens)


def test_wide_nodes_come_in_tall_units_where_blocks_are_busy_all_the_same():
    def packed(leaves: int) -> list[int]:
        work = work_of(cases.Case(32, 8, 128, None, ((1, 1024), (leaves, 16))))
        return sorted(set(work.units[: work.num_long, WorkUnit.NUM_PACKED].tolist()))

    assert packed(1024) == [128]
    assert packed(64) == [64]


def test_parts_of_a_split_node_are_even():
    work = work_of(cases.Case(8, 1, 64, None, ((1, 1000),)), split_tokens=384)
    assert (work.units[:, WorkUnit.KV_HI] - work.units[:, WorkUnit.KV_LO]).tolist() == [384, 384, 232]
    work = work_of(cases.Case(8, 1, 64, None, ((1, 1030),)), split_tokens=512)
    assert (work.units[:, WorkUnit.KV_HI] - work.units[:, WorkUnit.KV_LO]).tolist() == [384, 384, 262]


def test_a_node_that_keeps_all_blocks_busy_is_not_split():
    """Its partial results would cost traffic for nothing."""
    work = work_of(cases.Case(32, 8, 128, None, ((1, 1024), (1024, 16))))
    assert work.num_slots == 2 * 1024  # one of the node and one of its leaf for every row


def test_rows_without_items_merge_nothing():
    plan, num_blocks = TREES[0].plan()
    work = check(plan, 4, 2, num_blocks, 16)
    assert np.diff(work.merge_start).tolist() == [1, 0, 0, 0]
    none = SimpleNamespace(items=np.zeros((0, 5), np.int32), blocks=np.zeros(0, np.int32))
    assert len(check(none, 0, 1, 0, 16).units) == 0


@pytest.mark.parametrize(
    ("item", "blocks", "shown"),
    [
        ([0, 4, 0, 5, 0], [0], "rows outside q"),
        ([2, 2, 0, 5, 0], [0], "rows outside q"),
        ([0, 1, 0, 17, 0], [0], "exceeds the plan's blocks"),
        ([0, 1, 0, 0, 0], [0], "exceeds the plan's blocks"),
        ([0, 1, 0, 5, 0], [9], "block 9 is outside the cache of 2"),
    ],
)
def test_refuses_a_plan_that_points_outside(item, blocks, shown):
    plan = SimpleNamespace(items=np.array([item], np.int32), blocks=np.array(blocks, np.int32))
    with pytest.raises(ValueError, match=shown):
        make(plan, 3, 2, 1, 2, 16)
