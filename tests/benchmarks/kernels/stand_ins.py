"""Stand-ins for other people's attention: their published signatures, layouts and refusals, in plain torch on a CPU.

FlashInfer's are those of its `decode.py` and `cascade.py` (0.2.5 to 0.6), varlen_attn's that of torch 2.13; FastTree's
and PAT's are in tree_stand_ins.py. A call that they would refuse, or read wrongly, raises.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import torch

HALF = (torch.float16, torch.bfloat16)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, num_hidden: int = 0) -> torch.Tensor:
    """(H, D) of one query (H, D) over keys and values (L, K, D), without the last `num_hidden`, in float32."""
    k, v = (x[: len(x) - num_hidden].float().repeat_interleave(len(q) // x.shape[1], 1) for x in (k, v))
    weights = (torch.einsum("hd,lhd->hl", q.float(), k) * scale).softmax(-1)
    return torch.einsum("hl,lhd->hd", weights, v).to(q.dtype)


def check(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(what)


def check_int32(*tensors: torch.Tensor) -> None:
    for x in tensors:
        check(x.dtype is torch.int32 and x.stride(-1) == 1, f"tables are contiguous int32, got {x.dtype}")


def varlen_attn(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    check_int32(cu_seq_q, cu_seq_k)
    check(query.dtype in HALF and query.dtype is key.dtype is value.dtype, "float16 or bfloat16")
    check(query.shape[1] == key.shape[1] or enable_gqa, "grouped heads need enable_gqa")
    starts, out = list(zip(cu_seq_q.tolist(), cu_seq_k.tolist(), strict=True)), torch.empty_like(query)
    for (q_lo, k_lo), (q_hi, k_hi) in pairwise(starts):
        check(q_hi - q_lo <= max_q and k_hi - k_lo <= max_k, "max_q and max_k are of the longest sequence")
        for row in range(q_lo, q_hi):  # the last query sees all keys
            num_hidden = 0 if window_size == (-1, -1) else q_hi - 1 - row
            out[row] = attend(query[row], key[k_lo:k_hi], value[k_lo:k_hi], scale, num_hidden)
    return out


class Planned:
    """Attention over pages, planned once; `plan` of both of FlashInfer's wrappers ends here."""

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str):
        check(float_workspace_buffer.dtype is torch.uint8, "a workspace of bytes")
        check(kv_layout in ("NHD", "HND"), f"layout {kv_layout}")
        self.kv_layout = kv_layout

    def set(self, rows, pages, indices, last, heads, page_size, scale, dtype) -> None:
        check_int32(rows, pages, indices, last)
        check(len(rows) == len(pages) == len(last) + 1, "one entry more in indptr than requests")
        check(int(pages[-1]) == len(indices) and bool((last >= 1).all() and (last <= page_size).all()), "pages")
        self.rows, self.pages, self.indices, self.last = (x.tolist() for x in (rows, pages, indices, last))
        self.heads, self.page_size, self.scale, self.dtype = heads, page_size, scale, dtype

    def of(self, paged_kv_cache, request: int) -> list[torch.Tensor]:
        """(L, K, D) keys and values of a request."""
        num_kv_heads, head_dim = self.heads[1:]
        pages = self.indices[self.pages[request] : self.pages[request + 1]]
        length = (len(pages) - 1) * self.page_size + self.last[request]
        found = []
        for cache in paged_kv_cache:
            cache = cache if self.kv_layout == "NHD" else cache.transpose(1, 2)
            check(tuple(cache.shape[1:]) == (self.page_size, num_kv_heads, head_dim), f"cache {tuple(cache.shape)}")
            check(cache.dtype is self.dtype and cache.stride(-1) == 1, "cache of the planned type")
            found.append(cache[pages].flatten(0, 1)[:length])
        return found

    def check_q(self, q: torch.Tensor) -> None:
        check(tuple(q.shape[1:]) == (self.heads[0], self.heads[2]) and q.dtype is self.dtype in HALF, "q as planned")
        check(len(q) == self.rows[-1], "as many queries as planned")


class BatchDecodeWithPagedKVCacheWrapper:
    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
        backend="auto",
        jit_args=None,
    ):
        self.planned = Planned(float_workspace_buffer, kv_layout)

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        pos_encoding_mode="NONE",
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
        data_type=None,
        sm_scale=None,
        rope_scale=None,
        rope_theta=None,
        non_blocking=True,
    ):
        rows = torch.arange(len(indptr), dtype=torch.int32)
        heads = (num_qo_heads, num_kv_heads, head_dim)
        self.planned.set(rows, indptr, indices, last_page_len, heads, page_size, sm_scale, q_data_type)

    def run(self, q, paged_kv_cache, *args, out=None, lse=None, return_lse=False):
        self.planned.check_q(q)
        rows = [attend(q[row], *self.planned.of(paged_kv_cache, row), self.planned.scale) for row in range(len(q))]
        return torch.stack(rows)


class MultiLevelCascadeAttentionWrapper:
    def __init__(
        self,
        num_levels,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        qo_indptr_buf_arr=None,
        paged_kv_indptr_buf_arr=None,
        paged_kv_indices_buf_arr=None,
        paged_kv_last_page_len_buf_arr=None,
    ):
        self.levels = [Planned(float_workspace_buffer, kv_layout) for _ in range(num_levels)]

    def plan(
        self,
        qo_indptr_arr,
        paged_kv_indptr_arr,
        paged_kv_indices_arr,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        causal=False,
        pos_encoding_mode="NONE",
        use_fp16_qk_reduction=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        rope_scale=None,
        rope_theta=None,
        q_data_type="float16",
        kv_data_type=None,
    ):
        heads = (num_qo_heads, num_kv_heads, head_dim)
        tables = (qo_indptr_arr, paged_kv_indptr_arr, paged_kv_indices_arr, paged_kv_last_page_len)
        for level, *of_level in zip(self.levels, *tables, strict=True):
            level.set(*of_level, heads, page_size, sm_scale, q_data_type)

    def run(self, q, paged_kv_cache):
        out = torch.empty_like(q)
        for row in range(len(q)):
            keys, values = [], []
            for level in self.levels:
                level.check_q(q)
                request = next(i for i, end in enumerate(level.rows[1:]) if row < end)
                k, v = level.of(paged_kv_cache, request)
                keys.append(k), values.append(v)
            out[row] = attend(q[row], torch.cat(keys), torch.cat(values), level.scale)
        return out


FLASHINFER = SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper,
    MultiLevelCascadeAttentionWrapper=MultiLevelCascadeAttentionWrapper,
)
VARLEN = SimpleNamespace(varlen_attn=varlen_attn)
