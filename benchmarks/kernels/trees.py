"""The trees on which tree attention is timed: the shapes of papers, of sweeps, and of our own searches.

Every case is a `Case` of ttc_kernels/tree_attention/cases.py at decode: one query per leaf.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ttc_kernels import _native
from ttc_kernels.tree_attention import cases
from ttc_kernels.tree_attention.cases import Case

RECORDED = Path(__file__).resolve().parent / "trees.json"
LAYOUTS = ((32, 32), (32, 8), (12, 2), (16, 1))  # query heads, KV heads
HEAD_DIM = 128
HOME_LAYOUT = (6, 2, 16)  # of the shipped policy, head size last

LEAVES, SHARED, OWN = (4, 16, 64, 256, 1024), (128, 1024, 8192), 16
# FastTree (MLSys'25): nodes and tokens per node of every level.
FASTTREE = (
    ((1, 2, 64), (8, 256, 32)),
    ((1, 4, 256), (8, 256, 32)),
    ((1, 4, 8, 256), (8, 256, 256, 32)),
    ((1, 256), (256, 32)),
    ((1, 1024), (2048, 32)),
    ((1, 16, 64), (1024, 256, 32)),
    ((1, 4, 16, 512), (1024, 256, 128, 32)),
    ((1, 4, 16, 64, 256, 1024), (256, 8, 256, 64, 32, 256)),
    ((1, 10), (4000, 400)),
    ((1, 2, 4, 8, 16, 32, 64, 128, 1024), (16,) * 9),
    ((1, 2, 4, 8, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16, 16, 16, 16)),
    ((1, 8, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16, 16)),
    ((1, 8, 16, 32, 64, 256, 1024), (256, 128, 64, 16, 16, 16, 16)),
    ((1, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16)),
    ((1, 16, 32, 64, 256, 1024), (256, 128, 64, 16, 16, 16)),
)
FIVE = (  # (tree, its heads): one of every kind, wide and leafy, with few and many query heads for a KV head
    ("beam 64 x (1024 + 16)", (12, 2)),
    ("beam 1024 x (1024 + 16)", (32, 8)),
    ("chain 8192", (12, 2)),
    ("star 64 x 512", (32, 8)),
    ("fasttree 1,4,16,512 x 1024,256,128,32", (32, 8)),
)
TWELVE = (
    *FIVE,
    ("beam 4 x (8192 + 16)", (12, 2)),
    ("beam 256 x (8192 + 16)", (32, 8)),
    ("beam 256 x (128 + 16)", (16, 1)),
    ("beam 64 x (1024 + 16)", (32, 32)),
    ("fasttree 1,10 x 4000,400", (32, 8)),
    ("fasttree 1,2,4,8,16,32,64,128,1024 x 16,16,16,16,16,16,16,16,16", (12, 2)),
    ("fasttree 1,4,16,64,256,1024 x 256,8,256,64,32,256", (32, 8)),
)


@dataclass(frozen=True)
class Tree(Case):
    """A forest of given nodes, in a pool of no more blocks than it takes; `levels` is empty."""

    name: str = ""
    nodes: tuple[tuple[int, int], ...] = ()  # (parent, tokens) before its children; parent -1 is a prompt

    def grow(self, seed: int = 0):
        num_children = Counter(parent for parent, _ in self.nodes)
        num_blocks = sum(-(-tokens // self.block_size) for _, tokens in self.nodes) + 3
        tree, rng = _native.KVTree(num_blocks, self.block_size), np.random.default_rng(seed)
        forks: dict[int, list[int]] = {}  # branches of a node that its children have not taken
        leaves = []
        for index, (parent, num_tokens) in enumerate(self.nodes):
            handle = tree.open(np.zeros(0, np.int32), reuse=False)[0] if parent < 0 else forks[parent].pop()
            tokens = rng.integers(0, 1000, num_tokens).astype(np.int32)
            tree.extend(np.array([handle], np.int32), np.array([num_tokens], np.int32), tokens)
            if index in num_children:
                forks[index] = tree.fork(handle, num_children[index]).tolist()
            else:
                leaves.append(handle)
        return tree, np.array(leaves, np.int32), num_blocks

    def num_keys(self, seed: int = 0) -> tuple[int, int]:
        assert self.num_queries == 1, "a row sees its whole path"
        tree, leaves, _ = self.grow(seed)
        return tree.path_tokens(leaves), tree.unique_tokens(leaves)


def regular(name: str, widths: tuple[int, ...], tokens: tuple[int, ...]) -> Tree:
    """A tree with `widths` nodes in its levels, of `tokens` tokens each; heads and type are put in later."""
    nodes: list[tuple[int, int]] = []
    above = [-1]
    for width, num_tokens in zip(widths, tokens, strict=True):
        assert width % len(above) == 0, f"{name}: a level's nodes must be a multiple of the level's above"
        level = range(len(nodes), len(nodes) + width)
        nodes += [(above[i * len(above) // width], num_tokens) for i in range(width)]
        above = list(level)
    return Tree(1, 1, HEAD_DIM, torch.float32, (), name=name, nodes=tuple(nodes))


def sweeps() -> list[Tree]:
    """A chain, a star, and beams under a shared prefix."""
    beams = [
        regular(f"beam {leaves} x ({shared} + {OWN})", (1, leaves), (shared, OWN))
        for shared in SHARED
        for leaves in LEAVES
    ]
    return [regular("chain 8192", (1,), (8192,)), regular("star 64 x 512", (1, 64), (16, 512)), *beams]


def fasttree() -> list[Tree]:
    """FastTree's grid of shapes."""
    return [
        regular(f"fasttree {','.join(map(str, nodes))} x {','.join(map(str, tokens))}", nodes, tokens)
        for nodes, tokens in FASTTREE
    ]


def recorded() -> list[Tree]:
    """Trees of searches with the shipped models; record_trees.py writes them."""
    rows = json.loads(RECORDED.read_text())
    return [
        Tree(1, 1, HEAD_DIM, torch.float32, (), name=f"search {row['name']}", nodes=tuple(map(tuple, row["nodes"])))
        for row in rows
    ]


def with_heads(tree: Tree, layout: tuple[int, int], dtype: torch.dtype, head_dim: int = HEAD_DIM) -> Tree:
    return replace(tree, num_heads=layout[0], num_kv_heads=layout[1], head_dim=head_dim, dtype=dtype)


def chosen(names: Sequence[tuple[str, tuple[int, int]]]) -> list[Tree]:
    """The trees of these names with these heads, in bfloat16."""
    known = {tree.name: tree for tree in sweeps() + fasttree()}
    return [with_heads(known[name], heads, torch.bfloat16) for name, heads in names]


def grid(device: str) -> list[Case]:
    """`full()`, then the trees above, sorted so that a run which ends early has seen every kind.

    A CPU has the sweeps in every head layout, and the rest at 12/2; float32 and bfloat16. A GPU has all trees in
    every layout in bfloat16, and the beams of 64 leaves in float16 too.
    """
    if device == "cpu":
        dtypes, others = (torch.float32, torch.bfloat16), ((12, 2),)
    else:
        dtypes, others = (torch.bfloat16,), LAYOUTS
    small = [with_heads(tree, HOME_LAYOUT[:2], dtypes[0], HOME_LAYOUT[2]) for tree in recorded()]
    rest = [(tree, layout) for tree in recorded() + fasttree() for layout in others]
    swept = [(tree, layout) for tree in sweeps() for layout in LAYOUTS]
    found = [with_heads(tree, layout, dtype) for tree, layout in rest + swept for dtype in dtypes]
    if device != "cpu":
        found += [with_heads(t, layout, torch.float16) for t, layout in swept if t.name.startswith("beam 64 ")]
    return [*cases.full(), *small, *found]


def label(case: Case) -> str:
    """The tree and its heads, as a table names them."""
    name = case.name if isinstance(case, Tree) else _levels(case)
    heads = f"{case.num_heads}/{case.num_kv_heads} x {case.head_dim}"
    return f"{name}, heads {heads}"


def _levels(case: Case) -> str:
    levels = " > ".join(f"{fanout} x {tokens}" for fanout, tokens in case.levels)
    extras = [f"{case.num_queries} queries"] * (case.num_queries > 1) + [f"spread {case.spread}"] * bool(case.spread)
    return ", ".join([levels, *extras])
