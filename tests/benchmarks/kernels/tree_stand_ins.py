"""Stand-ins for FastTree (its artifact's `kernel_bench`) and PAT (its package `prefix_attn`); see stand_ins.py."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.benchmarks.kernels.stand_ins import HALF, attend, check, check_int32


class KVTreeNode:
    def __init__(self):
        self.parent, self.id, self.seqlen, self.num_children, self.requests = -1, -1, 0, 0, []


class FastTreeParams:
    TSQs, TSKs, kv_group_num = (64, 16), (32, 128), 1

    def set_values(self, alpha, beta, gamma):
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def set_kv_group_num(self, kv_group_num):
        self.kv_group_num = kv_group_num

    def set_q_tile_sizes(self, TSQs):
        self.TSQs = TSQs

    def set_kv_tile_sizes(self, TSKs):
        self.TSKs = TSKs


def fasttree_preparation(
    tree_info,
    KV_ptrs,
    batch_size,
    num_qo_heads,
    num_kv_heads,
    head_dim,
    KV_SPLIT_SIZES,
    para_threshs1,
    para_threshs2,
    params,
):
    """One unit of work for each node; the tiles change, as they do where there are few units."""
    for i, node in enumerate(tree_info):
        children = [child for child in tree_info if child.parent == i]
        check(node.id == i and len(children) == node.num_children and -1 <= node.parent < i + (i == 0), "a tree")
        check(KV_ptrs[i + 1] - KV_ptrs[i] == node.seqlen, "KV_ptrs are where nodes end")
        below = sorted(request for child in children for request in child.requests)
        check(not children or below == node.requests, "requests of a node are those of its children")
    check(sorted(tree_info[0].requests) == list(range(batch_size)), "node 0 is the root")
    check(params.kv_group_num == num_qo_heads // num_kv_heads, "group")
    params.set_q_tile_sizes([params.TSQs[1]] * 2)
    params.set_kv_tile_sizes([params.TSKs[1]] * 2)
    q_entries = [request for node in tree_info for request in node.requests]
    q_lens = [len(node.requests) for node in tree_info]
    q_offs = [sum(q_lens[:i]) for i in range(len(q_lens))]
    kv_lens = [node.seqlen for node in tree_info]
    mid = torch.full((len(q_entries), num_qo_heads, head_dim), torch.nan)
    vnodes = (list(range(KV_ptrs[-1])), KV_ptrs[:-1], kv_lens, q_entries, q_offs, q_lens)
    return (*vnodes, None, None, None, mid, mid[..., 0], [len(tree_info), 0], [0, len(tree_info)]), [0] * len(kv_lens)


def fasttree_decode(
    q,
    k_buffer,
    v_buffer,
    o,
    vnode_to_kv_entries,
    vnode_to_kv_offs,
    vnode_to_kv_lens,
    vnode_to_q_entries,
    vnode_to_q_offs,
    vnode_to_q_lens,
    req_to_vnode_entries,
    req_to_vnode_offs,
    req_to_vnode_lens,
    mid_o,
    mid_lse,
    phase_node_nums,
    phase_node_offsets,
    phase_q_tile_sizes,
    phase_kv_tile_sizes,
    sm_scale,
    logit_cap=-1,
):
    check(q.stride(-1) == k_buffer.stride(-1) == v_buffer.stride(-1) == 1, "adjacent elements")
    check(len(set(phase_q_tile_sizes)) == 1, "the tiles that the preparation has chosen")
    seen = [[] for _ in q]
    parts = zip(vnode_to_kv_offs, vnode_to_kv_lens, vnode_to_q_offs, vnode_to_q_lens, strict=True)
    for kv_lo, num_keys, q_lo, num_queries in parts:
        for request in vnode_to_q_entries[q_lo : q_lo + num_queries]:
            seen[request] += vnode_to_kv_entries[kv_lo : kv_lo + num_keys]
    for request, keys in enumerate(seen):
        o[request] = attend(q[request], k_buffer[keys], v_buffer[keys], sm_scale)


class PrefixTree:
    """PAT's scheduler without its packing: a pack for each branch and half of its pages, in kernels of two sizes."""

    def __init__(self, block_size):
        self.block_size = block_size

    def build_radix_tree(self, seq_lens, block_table):
        for length, blocks in zip(seq_lens, block_table, strict=True):
            check(len(blocks) == -(-length // self.block_size), "an unpadded table")
        self.seq_lens, self.block_table = seq_lens, block_table

    def pack_schedule(self, MNWs=None, HRatio=1, kvHead=8, use_compute_model=False):
        info, num_splits, kernels = KernelInfo(), [], ([], [])
        for seq, (length, blocks) in enumerate(zip(self.seq_lens, self.block_table, strict=True)):
            cut = len(blocks) // 2
            halves = [(blocks[:cut], cut * self.block_size), (blocks[cut:], length - cut * self.block_size)]
            halves = [half for half in halves if half[0]]
            num_splits.append(len(halves))
            for rank, (part, num_keys) in enumerate(halves):
                kernels[rank].append(([seq], part, 1, rank, num_keys))
        used = [kernel for kernel in kernels if kernel]
        info.MNWs = [[16, 32, 1], [16, 128, 1]][: len(used)]
        tables = [list(map(list, zip(*kernel, strict=True))) for kernel in used]
        names = ("q_tables", "block_tables", "num_seqs_per_CTAs", "CTA_ranks", "kv_in_CTAs")
        for name, of_kernels in zip(names, zip(*tables, strict=True), strict=True):
            setattr(info, name, list(of_kernels))
        info.num_split_per_seq, info.max_split_per_seq = num_splits, max(num_splits)
        info.max_seqs_in_CTA = 1
        info.max_blocks_in_CTA = max(len(part) for kernel in used for _, part, *_ in kernel)
        return info


class KernelInfo:
    def to_tensor(self, device):
        def padded(rows: list) -> torch.Tensor:
            longest = max(map(len, rows))
            return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int32)

        self.q_tables, self.block_tables = ([padded(x) for x in of] for of in (self.q_tables, self.block_tables))
        for name in ("num_seqs_per_CTAs", "CTA_ranks", "kv_in_CTAs"):
            setattr(self, name, [torch.tensor(x, dtype=torch.int32) for x in getattr(self, name)])
        self.num_split_per_seq = torch.tensor(self.num_split_per_seq, dtype=torch.int32)


def prefix_attn_with_kvcache(
    q,
    k_cache_paged,
    v_cache_paged,
    num_split_per_seq,
    query_tables,
    block_tables,
    num_seqs_per_CTAs,
    CTA_ranks,
    kv_in_CTAs,
    MNW,
    max_split_per_seq,
    max_seqs_in_CTA,
    max_blocks_in_CTA,
    softmax_scale,
    out,
    timing_=None,
):
    batch, one, num_heads, head_dim = q.shape
    page_size, num_kv_heads = k_cache_paged.shape[1:3]
    check(q.dtype in HALF and q.dtype is k_cache_paged.dtype is v_cache_paged.dtype, "float16 or bfloat16")
    check(one == 1 and head_dim in (64, 128) and num_heads // num_kv_heads in (1, 2, 4, 8), "q")
    check(k_cache_paged.shape == v_cache_paged.shape and k_cache_paged.shape[3] == head_dim, "caches")
    check(page_size % 16 == 0 and (page_size >= 32 or [16, 128, 1] not in MNW), "pages of 32 tokens")
    check(0 < max_split_per_seq <= 32 and len(num_split_per_seq) == batch, "splits")
    check_int32(num_split_per_seq, *query_tables, *block_tables, *num_seqs_per_CTAs, *CTA_ranks, *kv_in_CTAs)
    seen = [{} for _ in range(batch)]
    for kernel in range(len(MNW)):
        for cta, (num_seqs, rank) in enumerate(zip(num_seqs_per_CTAs[kernel], CTA_ranks[kernel], strict=True)):
            num_keys, blocks = int(kv_in_CTAs[kernel][cta]), block_tables[kernel][cta].long()
            part = [cache[blocks].flatten(0, 1)[:num_keys] for cache in (k_cache_paged, v_cache_paged)]
            for seq in query_tables[kernel][cta][:num_seqs].tolist():
                seen[seq][int(rank)] = part
    for seq, parts in enumerate(seen):
        check(sorted(parts) == list(range(int(num_split_per_seq[seq]))), "ranks count the splits")
        k, v = (torch.cat([part[i] for part in parts.values()]) for i in (0, 1))
        out[seq, 0] = attend(q[seq, 0], k, v, softmax_scale)


FASTTREE = SimpleNamespace(
    FastTreeParams=FastTreeParams, fasttree_preparation=fasttree_preparation, fasttree_decode=fasttree_decode
)
KV_TREE_SIMPLE = SimpleNamespace(KVTreeNode=KVTreeNode)
PREFIX_ATTN = SimpleNamespace(PrefixTree=PrefixTree, prefix_attn_with_kvcache=prefix_attn_with_kvcache)
