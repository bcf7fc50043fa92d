"""Peers of tree attention that run on a GPU alone: torch's varlen_attn, FlashInfer's cascade, FastTree.

FlashInfer is the package `flashinfer`; FastTree is no package: its artifact's folder `kernel_bench` is put on
PYTHONPATH (modules fasttree and kv_tree_simple).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType

import torch

from benchmarks.timing import Missing


def _module(name: str, paths) -> ModuleType:
    """A module that only a GPU can use. Raises Missing without a GPU, and where it cannot be imported."""
    if paths.device != "cuda":
        raise Missing("runs on a GPU only")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation raises more than ImportError
        raise Missing(f"cannot be imported: {error}") from None


def varlen(paths) -> tuple[Callable, Callable]:
    """torch.nn.attention.varlen: FlashAttention over the branches one behind the other."""
    varlen_attn = _module("torch.nn.attention.varlen", paths).varlen_attn
    case, inputs = paths.case, paths.inputs
    paths.claim(sum(paths.lengths))
    slots = torch.cat(paths.slots).to(paths.device)
    place = (slots // case.block_size, slice(None), slots % case.block_size)
    k, v = inputs["k_cache"][place], inputs["v_cache"][place]  # (keys, K, D)
    ends = torch.tensor([0, *paths.lengths]).cumsum(0).int().to(paths.device)
    rows = torch.arange(paths.num_branches + 1, dtype=torch.int32, device=paths.device) * paths.num_queries
    q = inputs["q"].contiguous()
    known = inspect.signature(varlen_attn).parameters  # it has changed between torch 2.11 and 2.13
    options = {"enable_gqa": True} if "enable_gqa" in known and case.num_heads != case.num_kv_heads else {}
    if paths.num_queries > 1:
        options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    longest = max(paths.lengths)
    return lambda: varlen_attn(q, k, v, rows, ends, paths.num_queries, longest, **options), lambda out: out


def flashinfer_cascade(paths) -> tuple[Callable, Callable]:
    """One launch for every level of the tree, and merges; on the paged cache as it is."""
    flashinfer = _module("flashinfer", paths)
    case = paths.case
    levels = cascade_levels(paths)
    rows, pages, indices, last = zip(*(level_tables(items, paths) for items in levels), strict=True)

    def on_gpu(lists: list[list[int]]) -> list[torch.Tensor]:
        return [torch.tensor(values, dtype=torch.int32, device=paths.device) for values in lists]

    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=paths.device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), workspace, "HND")
    heads = (case.num_heads, case.num_kv_heads, case.head_dim, case.block_size)
    wrapper.plan(on_gpu(rows), on_gpu(pages), on_gpu(indices), on_gpu(last), *heads, q_data_type=case.dtype)
    q, cache = paths.inputs["q"].contiguous(), (paths.inputs["k_cache"], paths.inputs["v_cache"])
    return lambda: wrapper.run(q, cache), lambda out: out


def cascade_levels(paths) -> list[list[list[int]]]:
    """The plan's items by their level in the tree. Raises Missing where these are no levels of a cascade."""
    plan, num_rows = paths.inputs["plan"], len(paths.inputs["q"])
    if plan.items[:, 4].any():
        raise Missing("the case has causal items, which are no level of a cascade")
    depth = [0] * num_rows
    levels: list[list[list[int]]] = []
    for item in plan.items.tolist():
        level = depth[item[0]]
        if level == len(levels):
            levels.append([])
        levels[level].append(item)
        depth[item[0] : item[1]] = [level + 1] * (item[1] - item[0])
    if len(set(depth)) > 1:
        raise Missing("paths of several depths, and every level of a cascade covers all rows")
    return levels


def level_tables(items: list[list[int]], paths) -> tuple[list[int], list[int], list[int], list[int]]:
    """(ends of rows, ends of pages, block numbers, tokens in the last page) of the items of one level."""
    size, blocks = paths.case.block_size, paths.inputs["plan"].blocks
    num_pages = [-(-item[3] // size) for item in items]
    parts = [blocks[item[2] : item[2] + num].tolist() for item, num in zip(items, num_pages, strict=True)]
    return (
        [0, *(item[1] for item in items)],
        torch.tensor([0, *num_pages]).cumsum(0).tolist(),
        [block for part in parts for block in part],
        [(item[3] - 1) % size + 1 for item in items],
    )


def fasttree(paths) -> tuple[Callable, Callable]:
    """FastTree's kernel over the nodes' KV one behind the other, with its artifact's tiles and thresholds."""
    module, nodes = _module("fasttree", paths), _module("kv_tree_simple", paths)
    case, inputs = paths.case, paths.inputs
    if paths.num_queries > 1:
        raise Missing("one query row a branch is all it takes")
    tree, slots, ends = fasttree_nodes(nodes, paths)
    slots = slots.to(paths.device)
    place = (slots // case.block_size, slice(None), slots % case.block_size)
    k, v = inputs["k_cache"][place], inputs["v_cache"][place]
    group = case.num_heads // case.num_kv_heads
    query_tiles, key_tiles = [max(1, 64 // group), max(1, 16 // group)], [32, 32]
    params = module.FastTreeParams()
    params.set_values(0.66, 0.33, 0.1)
    params.set_q_tile_sizes(query_tiles)
    params.set_kv_tile_sizes(key_tiles)
    params.set_kv_group_num(group)
    heads = (case.num_heads, case.num_kv_heads, case.head_dim)
    splits, thresholds = [1024, 128], ([132, 528], [132, 132])
    aux, _ = module.fasttree_preparation(tree, ends, paths.num_branches, *heads, splits, *thresholds, params)
    q = inputs["q"].contiguous()
    out = torch.empty_like(q)

    def call() -> torch.Tensor:
        module.fasttree_decode(q, k, v, out, *aux, query_tiles, key_tiles, inputs["scale"])
        return out

    return call, lambda result: result


def fasttree_nodes(nodes: ModuleType, paths) -> tuple[list, torch.Tensor, list[int]]:
    """The plan's items as FastTree's nodes, the slots of their tokens one behind the other, and where each ends."""
    size, plan = paths.case.block_size, paths.inputs["plan"]
    above = [-1] * paths.num_branches  # the node that a branch has reached
    tree, slots, ends = [], [], [0]
    for index, (lo, hi, offset, num_tokens, _) in enumerate(plan.items.tolist()):
        node = nodes.KVTreeNode()
        node.id, node.parent, node.seqlen, node.requests = index, above[lo], num_tokens, list(range(lo, hi))
        if node.parent >= 0:
            tree[node.parent].num_children += 1
        above[lo:hi] = [index] * (hi - lo)
        tree.append(node)
        blocks = torch.as_tensor(plan.blocks[offset : offset - (-num_tokens // size)]).long()
        slots.append((blocks[:, None] * size + torch.arange(size)).flatten()[:num_tokens])
        ends.append(ends[-1] + num_tokens)
    return tree, torch.cat(slots), ends


GPU_PEERS = {"varlen_attn": varlen, "flashinfer_cascade": flashinfer_cascade, "fasttree": fasttree}
