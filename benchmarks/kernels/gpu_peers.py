"""Peers of tree attention that run on a GPU alone: torch's varlen_attn, FlashInfer, FastTree, PAT.

FlashInfer is the package `flashinfer`, PAT the package `prefix_attn` (built from its repository); FastTree is no
package: its artifact's folder `kernel_bench` is put on PYTHONPATH (modules fasttree and kv_tree_simple). Each has one
adapter, which gets the modules as arguments, so that tests can hand it stand-ins with the published signatures.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import ModuleType

import torch

from benchmarks.timing import Missing

PAT_PAGE = 32  # tokens; PAT refuses smaller ones for some of its tiles


def with_modules(adapter: Callable, *names: str) -> Callable:
    """The peer of an adapter. It raises Missing without a GPU, and where a module cannot be imported."""

    def peer(paths) -> tuple[Callable, Callable]:
        if paths.device != "cuda":
            raise Missing("runs on a GPU only")
        try:
            modules = [importlib.import_module(name) for name in names]
        except Exception as error:  # a broken installation raises more than ImportError
            raise Missing(f"cannot be imported: {error}") from None
        return adapter(paths, *modules)

    return peer


def int32(values: list[int], paths) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=paths.device)


@dataclass(frozen=True)
class Pages:
    """The KV of the branches in pages of their own positions, as servers keep it; equal pages are stored once."""

    k: torch.Tensor  # (pages, page size, K, D)
    v: torch.Tensor
    tables: list[list[int]]  # of each branch: its pages

    @classmethod
    def of(cls, paths, size: int) -> Pages:
        counts = [-(-length // size) for length in paths.lengths]
        padded = [torch.nn.functional.pad(slots, (0, -len(slots) % size), value=-1) for slots in paths.slots]
        pages, numbers = torch.cat(padded).view(-1, size).unique(dim=0, return_inverse=True)
        paths.claim(pages.numel())
        slots = pages.clamp(min=0).to(paths.device)  # what follows the end of a branch is not read
        place = (slots // paths.case.block_size, slice(None), slots % paths.case.block_size)
        k, v = (paths.inputs[name].transpose(1, 2)[place[0], place[2]] for name in ("k_cache", "v_cache"))
        return cls(k, v, [part.tolist() for part in numbers.split(counts)])


def varlen(paths, module: ModuleType) -> tuple[Callable, Callable]:
    """torch.nn.attention.varlen: FlashAttention over the branches one behind the other."""
    varlen_attn = module.varlen_attn
    case, inputs = paths.case, paths.inputs
    paths.claim(sum(paths.lengths))
    slots = torch.cat(paths.slots).to(paths.device)
    place = (slots // case.block_size, slice(None), slots % case.block_size)
    k, v = inputs["k_cache"][place], inputs["v_cache"][place]  # (keys, K, D)
    ends = torch.tensor([0, *paths.lengths]).cumsum(0).int().to(paths.device)
    rows = torch.arange(paths.num_branches + 1, dtype=torch.int32, device=paths.device) * paths.num_queries
    q = inputs["q"].contiguous()
    known = inspect.signature(varlen_attn).parameters  # it has changed between torch 2.11 and 2.13
    options = {"scale": inputs["scale"]} if "scale" in known else {}
    options |= {"enable_gqa": True} if "enable_gqa" in known and case.num_heads != case.num_kv_heads else {}
    if paths.num_queries > 1:
        options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    longest = max(paths.lengths)
    return lambda: varlen_attn(q, k, v, rows, ends, paths.num_queries, longest, **options), lambda out: out


def flashinfer_decode(paths, flashinfer: ModuleType) -> tuple[Callable, Callable]:
    """Every branch by itself over its pages, shared ones included: what servers run."""
    case = paths.case
    if paths.num_queries > 1:
        raise Missing("one query row a branch is all it takes")
    pages, size = Pages.of(paths, case.block_size), case.block_size
    ends = torch.tensor([0, *map(len, pages.tables)]).cumsum(0).tolist()
    last = [(length - 1) % size + 1 for length in paths.lengths]
    group = case.num_heads // case.num_kv_heads
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(paths), "NHD", use_tensor_cores=group >= 4)
    tables = [int32(values, paths) for values in (ends, list(chain(*pages.tables)), last)]
    heads = (case.num_heads, case.num_kv_heads, case.head_dim, size)
    wrapper.plan(*tables, *heads, q_data_type=case.dtype, sm_scale=paths.inputs["scale"])
    q = paths.inputs["q"].contiguous()
    return lambda: wrapper.run(q, (pages.k, pages.v)), lambda out: out


def flashinfer_cascade(paths, flashinfer: ModuleType) -> tuple[Callable, Callable]:
    """One launch for every level of the tree, and merges; on the paged cache as it is."""
    case = paths.case
    levels = cascade_levels(paths)
    tables = zip(*(level_tables(items, paths) for items in levels), strict=True)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), _workspace(paths), "HND")
    heads = (case.num_heads, case.num_kv_heads, case.head_dim, case.block_size)
    of_levels = [[int32(values, paths) for values in table] for table in tables]
    wrapper.plan(*of_levels, *heads, sm_scale=paths.inputs["scale"], q_data_type=case.dtype)
    q, cache = paths.inputs["q"].contiguous(), (paths.inputs["k_cache"], paths.inputs["v_cache"])
    return lambda: wrapper.run(q, cache), lambda out: out


def _workspace(paths) -> torch.Tensor:
    return torch.empty(256 << 20, dtype=torch.uint8, device=paths.device)


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


def fasttree(paths, module: ModuleType, nodes: ModuleType) -> tuple[Callable, Callable]:
    """FastTree's kernel over the nodes' KV one behind the other, with its artifact's tiles and thresholds."""
    case, inputs = paths.case, paths.inputs
    group = case.num_heads // case.num_kv_heads
    if paths.num_queries > 1:
        raise Missing("one query row a branch is all it takes")
    if group & (group - 1):
        raise Missing(f"{group} query heads for a KV head, where it takes powers of two")
    tree, slots, ends = fasttree_nodes(nodes, paths)
    if sum(node.parent < 0 for node in tree) > 1:
        raise Missing("several roots, where it takes one")
    slots = slots.to(paths.device)
    place = (slots // case.block_size, slice(None), slots % case.block_size)
    k, v = inputs["k_cache"][place], inputs["v_cache"][place]
    params = module.FastTreeParams()
    params.set_values(0.66, 0.33, 0.1)
    params.set_q_tile_sizes([max(1, 64 // group), max(1, 16 // group)])
    params.set_kv_tile_sizes([32, 32])
    params.set_kv_group_num(group)
    heads = (case.num_heads, case.num_kv_heads, case.head_dim)
    splits, thresholds = [1024, 128], ([132, 528], [132, 132])
    aux, _ = module.fasttree_preparation(tree, ends, paths.num_branches, *heads, splits, *thresholds, params)
    q = inputs["q"].contiguous()
    out = torch.empty_like(q)

    def call() -> torch.Tensor:  # with the tiles that the preparation has settled on
        module.fasttree_decode(q, k, v, out, *aux, params.TSQs, params.TSKs, inputs["scale"])
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


def pat(paths, prefix_attn: ModuleType) -> tuple[Callable, Callable]:
    """PAT: branches packed by the pages that they share, each pack by a kernel with tiles of its size."""
    case, inputs = paths.case, paths.inputs
    group = case.num_heads // case.num_kv_heads
    if paths.num_queries > 1:
        raise Missing("one query row a branch is all it takes")
    if group not in (1, 2, 4, 8) or case.head_dim not in (64, 128):
        raise Missing(f"{group} query heads for a KV head of {case.head_dim}: it takes 1, 2, 4 or 8, of 64 or 128")
    pages = Pages.of(paths, PAT_PAGE)
    tree = prefix_attn.PrefixTree(PAT_PAGE)
    tree.build_radix_tree(paths.lengths, pages.tables)
    info = tree.pack_schedule(MNWs=None, HRatio=group, kvHead=case.num_kv_heads, use_compute_model=False)
    info.to_tensor(device=paths.device)
    q = inputs["q"].contiguous()[:, None]
    out = torch.empty_like(q)
    packs = (info.q_tables, info.block_tables, info.num_seqs_per_CTAs, info.CTA_ranks, info.kv_in_CTAs, info.MNWs)
    limits = (info.max_split_per_seq, info.max_seqs_in_CTA, info.max_blocks_in_CTA)
    call = partial(prefix_attn.prefix_attn_with_kvcache, q, pages.k, pages.v, info.num_split_per_seq, *packs, *limits)

    def attend() -> torch.Tensor:
        call(inputs["scale"], out, None)
        return out[:, 0]

    return attend, lambda result: result


GPU_PEERS = {
    "varlen_attn": with_modules(varlen, "torch.nn.attention.varlen"),
    "flashinfer_decode": with_modules(flashinfer_decode, "flashinfer"),
    "flashinfer_cascade": with_modules(flashinfer_cascade, "flashinfer"),
    "fasttree": with_modules(fasttree, "fasttree", "kv_tree_simple"),
    "pat": with_modules(pat, "prefix_attn"),
}
