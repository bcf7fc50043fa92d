"""The definition of tree attention: a query row attends to the tokens of all plan items that contain it, in order."""

from __future__ import annotations

import torch


def visible_slots(plan, block_size: int, num_rows: int) -> list[torch.Tensor]:
    """For each query row the slots of the tokens it sees, int64, in position order."""
    blocks = torch.as_tensor(plan.blocks, dtype=torch.int64)
    parts: list[list[torch.Tensor]] = [[] for _ in range(num_rows)]
    for row_lo, row_hi, block_offset, num_tokens, causal in plan.items.tolist():
        num_blocks = -(-num_tokens // block_size)
        starts = blocks[block_offset : block_offset + num_blocks, None] * block_size
        slots = (starts + torch.arange(block_size)).flatten()[:num_tokens]
        for row in range(row_lo, row_hi):
            limit = num_tokens - (row_hi - 1 - row) if causal else num_tokens
            parts[row].append(slots[: max(0, limit)])
    return [torch.cat(p) if p else blocks.new_zeros(0) for p in parts]


def tree_attention(
    q: torch.Tensor,  # (rows, num_heads, head_dim)
    k_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    v_cache: torch.Tensor,  # (num_blocks, num_kv_heads, block_size, head_dim)
    plan,  # KVTree.plan(...), or any object with its `items` and `blocks`
    scale: float,
    out: torch.Tensor | None = None,  # (rows, num_heads, head_dim)
) -> torch.Tensor:
    num_rows, num_heads, _ = q.shape
    _, num_kv_heads, block_size, _ = k_cache.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    result = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for row, slots in enumerate(visible_slots(plan, block_size, num_rows)):
        if slots.numel() == 0:
            continue  # a row that sees no token is all zeros
        slots = slots.to(q.device)
        block, offset = slots // block_size, slots % block_size
        k = k_cache[block, :, offset].transpose(0, 1)  # (num_kv_heads, tokens, head_dim)
        v = v_cache[block, :, offset].transpose(0, 1)
        grouped = q[row].view(num_kv_heads, num_heads // num_kv_heads, -1)
        weights = torch.softmax(scale * (grouped @ k.transpose(1, 2)), dim=-1, dtype=wide).to(q.dtype)
        result[row] = (weights @ v).flatten(0, 1)
    return result if out is None else out.copy_(result)
