"""step_score on a GPU: a launch for the scores, a launch that folds them in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ttc_kernels.step_score.reference import LabelHead


@triton.jit
def _logit(hidden_ptr, weight_ptr, bias_ptr, size, label, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """hidden · weight[label] + bias[label], float32."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(hidden_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        w = tl.load(weight_ptr + tl.cast(label, tl.int64) * size + at, mask=at < size, other=0.0).to(tl.float32)
        total += x * w
    logit = tl.sum(total, 0)
    if HAS_BIAS:
        logit += tl.load(bias_ptr + label).to(tl.float32)
    return logit


@triton.jit(do_not_specialize=["num_hidden"])
def _score(
    hidden_ptr,
    rows_ptr,
    mask_ptr,
    weight_ptr,
    bias_ptr,
    scores_ptr,
    hidden_stride,
    num_hidden,
    size,
    num_labels,
    good_index,
    HAS_BIAS: tl.constexpr,
    IS_BINARY: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program a score: 1 / sum of exp(other - good), which cannot overflow to NaN."""
    i = tl.program_id(0)
    row = tl.load(rows_ptr + i)
    is_known = (row >= 0) & (row < num_hidden)
    if HAS_MASK:
        is_set = tl.load(mask_ptr + i) != 0
        is_known = is_known & is_set
        size = tl.where(is_set, size, 0)  # nothing is read
    hidden_ptr += tl.where(is_known, row, 0).to(tl.int64) * hidden_stride
    good = _logit(hidden_ptr, weight_ptr, bias_ptr, size, good_index, HAS_BIAS, BLOCK)
    if IS_BINARY:
        total = 1.0 + tl.exp(-good)
    else:
        total = good - good  # 0, or NaN with the good logit
        for label in range(0, num_labels):
            other = _logit(hidden_ptr, weight_ptr, bias_ptr, size, label, HAS_BIAS, BLOCK)
            total += tl.where(label == good_index, 1.0, tl.exp(other - good))
    tl.store(scores_ptr + i, tl.where(is_known, 1.0 / total, float("nan")))


@triton.jit
def _next_in_slot(slot_ptr, n, slot, after, BLOCK: tl.constexpr):
    """The first score after `after` that goes into the slot; n where there is none."""
    found = n
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        is_next = (tl.load(slot_ptr + i, mask=i < n, other=-1) == slot) & (i > after)
        found = tl.minimum(found, tl.min(tl.where(is_next, i, n), 0))
    return found


@triton.jit(do_not_specialize=["n", "num_hidden"])
def _fold(
    scores_ptr,
    rows_ptr,
    mask_ptr,
    slot_ptr,
    state_ptr,
    counts_ptr,
    n,
    num_hidden,
    num_slots,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The program of a slot's first score folds all scores of the slot, with the float operations of reference.fold."""
    i = tl.program_id(0).to(tl.int32)
    slot = tl.load(slot_ptr + i)
    is_first = _next_in_slot(slot_ptr, n, slot, -1, BLOCK) == i
    if is_first & (slot >= 0) & (slot < num_slots):
        place = state_ptr + 4 * slot.to(tl.int64)
        count = tl.load(counts_ptr + slot)
        last = tl.load(place)
        least = tl.load(place + 1)
        product = tl.load(place + 2)
        mean = tl.load(place + 3)
        while i < n:
            row = tl.load(rows_ptr + i)
            is_scored = (row >= 0) & (row < num_hidden)
            if HAS_MASK:
                is_scored = is_scored & (tl.load(mask_ptr + i) != 0)
            if is_scored:
                last = tl.load(scores_ptr + i)
                is_less = (last < least) | (last != last)
                least = tl.where((count == 0) | is_less, last, least)
                product = tl.where(count == 0, last, product * last)
                moved = mean + tl.div_rn(last - mean, (count + 1).to(tl.float32))
                mean = tl.where(count == 0, last, moved)
                count += 1
            i = _next_in_slot(slot_ptr, n, slot, i, BLOCK)
        tl.store(place, last)
        tl.store(place + 1, least)
        tl.store(place + 2, product)
        tl.store(place + 3, mean)
        tl.store(counts_ptr + slot, count)


def step_score(
    hidden: torch.Tensor,  # (num_hidden_rows, size)
    rows: torch.Tensor,  # (n,) int32; NaN for one outside hidden, which is not folded
    head: LabelHead,
    state: torch.Tensor | None = None,  # (num_slots, 4) float32
    counts: torch.Tensor | None = None,  # (num_slots,) int32
    slot: torch.Tensor | None = None,  # (n,) int32; a score for one outside the state is not folded
    mask: torch.Tensor | None = None,  # (n,) bool: which are scored at all; NaN, and not folded, where it is not set
) -> torch.Tensor:
    weight, bias, good_index = head
    (num_labels, size), n = weight.shape, len(rows)
    scores = torch.empty(n, dtype=torch.float32, device=hidden.device)
    if n == 0:
        return scores
    has_mask = mask is not None
    is_set = mask.view(torch.uint8) if has_mask else rows
    _score[(n,)](
        hidden,
        rows,
        is_set,
        weight,
        weight if bias is None else bias,
        scores,
        hidden.stride(0),
        len(hidden),
        size,
        num_labels,
        0 if num_labels == 1 else good_index,
        HAS_BIAS=bias is not None,
        IS_BINARY=num_labels == 1,
        HAS_MASK=has_mask,
        BLOCK=min(1024, max(16, triton.next_power_of_2(size))),
    )
    if slot is None:
        return scores
    _fold[(n,)](
        scores,
        rows,
        is_set,
        slot,
        state,
        counts,
        n,
        len(hidden),
        len(state),
        HAS_MASK=has_mask,
        BLOCK=min(1024, max(16, triton.next_power_of_2(n))),
        num_warps=1,
    )
    return scores
