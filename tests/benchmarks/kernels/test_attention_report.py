"""The report on tree attention's kernels: what it counts in machine code and in work lists."""

import pytest
import torch

from benchmarks.kernels import trees
from benchmarks.kernels.attention_report import blocks_per_processor, once_and_tile
from benchmarks.kernels.attention_units import WAYS, units_of


def test_units_of_a_tree():
    """A root that 64 rows share, and leaves that a warp each computes."""
    tree = trees.with_heads(trees.regular("beam", (1, 64), (1024, 20)), (32, 8), torch.bfloat16)
    units = units_of(tree)
    leaves = [unit for unit in units if unit.way == "short"]
    assert [(unit.num_tiles, unit.num_tokens, unit.num_partials) for unit in leaves] == [(2, 20, 4)] * 64
    rest = [unit for unit in units if unit.way != "short"]
    assert {unit.way for unit in rest} <= set(WAYS)
    assert sum(unit.num_tokens * unit.num_partials for unit in rest) == 1024 * 64 * 4


def test_the_tile_loop_is_the_smallest_around_most_products():
    texts = ["MOV", "HMMA", "HMMA", "@P0 BRA 0x10", "LDG", "@P1 BRA 0x40", "@P2 BRA 0x0", "EXIT"]
    sass = [(16 * i, text) for i, text in enumerate(texts)]
    assert once_and_tile(sass, 1) == (8, 3)
    assert once_and_tile(sass, 4) == (8 + 9, 7 + 9)  # three more steps, in the loop over tiles


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "num"),
    [("sm_90a", 248, 99_984, 2), ("sm_90a", 248, 120_000, 1), ("sm_80", 168, 50_000, 3), ("sm_90a", 255, 0, 2)],
)
def test_blocks_per_processor(arch, registers, shared, num):
    assert blocks_per_processor(arch, registers, shared, 128) == num
