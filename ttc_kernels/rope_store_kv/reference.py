"""The definition of rope_store_kv, with transformers' rotate_half convention; rounds the biased row, and the result."""

from __future__ import annotations

import torch


def rope_store_kv(
    qkv: torch.Tensor,  # (rows, (num_heads + 2 * num_kv_heads) * head_dim); its queries are rotated in place
    cos: torch.Tensor,  # (max_position, head_dim / 2)
    sin: torch.Tensor,  # (max_position, head_dim / 2)
    positions: torch.Tensor,  # (rows,)
    slots: torch.Tensor,  # (rows,), -1 stores nothing
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    v_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    bias: torch.Tensor | None = None,  # (row of qkv,), added first; the sum is rounded
) -> None:
    num_kv_heads, block_size, head_dim = k_cache.shape[1:]
    biased = (qkv if bias is None else qkv + bias).unflatten(1, (-1, head_dim))
    num_heads = biased.shape[1] - 2 * num_kv_heads
    q, k, v = biased.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    c = cos[positions].repeat(1, 2)[:, None].to(wide)
    s = sin[positions].repeat(1, 2)[:, None].to(wide)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        low, high = x.to(wide).chunk(2, dim=-1)
        return (x.to(wide) * c + torch.cat([-high, low], dim=-1) * s).to(x.dtype)

    is_stored = slots >= 0
    block, offset = slots[is_stored] // block_size, slots[is_stored] % block_size
    k_cache[block, :, offset] = rotate(k)[is_stored]
    v_cache[block, :, offset] = v[is_stored]
    qkv.unflatten(1, (-1, head_dim))[:, :num_heads] = rotate(q)
