"""step_score: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels import _native
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.step_score import cuda, reference

choose = chooser("step_score")


def step_score(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    good_index: int,
    state: torch.Tensor,
    counts: torch.Tensor,
    slot: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> torch.Tensor:
    """The scores of `rows` of `hidden`, (n,) float32, folded in order into `state[slot]`.

    hidden (num_hidden_rows, size), weight (labels, size) and bias (labels,) or None share float32 or
    bfloat16, on a GPU also float16; rows and slot are (n,) int32. One label: its sigmoid. More: the softmax
    probability of label `good_index`. state (num_slots, 4) float32 holds the running last, min, product and
    mean, counts (num_slots,) int32 how many scores went into each; both are changed in place, scores of one slot
    going in one after the other. A NaN score is NaN in `last`. Where `mask`, (n,) bool, is not set nothing is scored
    and the score is NaN; no `mask` is one that is set throughout. `impl` is "auto" (see choice.py), "native" (CPU),
    "triton", "cuda" or "reference"; `isa` picks the native build. Raises ValueError for other shapes or types and for
    a row, slot or good_index out of range, with nothing changed; on a GPU, where an error would wait for the device,
    the score of such a row is NaN, and it and one for such a slot are not folded.
    """
    impl = choose(impl, hidden)
    dtype = hidden.dtype
    if (
        dtype not in DTYPES[impl]
        or hidden.dim() != 2
        or hidden.stride(1) != 1
        or (impl == "native" and not hidden.is_cpu)
    ):
        raise ValueError(
            "step_score: hidden must be (rows, size) float32 or bfloat16 with adjacent elements on a CPU, in Triton "
            f"also float16 or on a GPU, got {_describe(hidden)} for impl {impl!r}"
        )
    num_labels, n, size, num_slots = len(weight), len(rows), hidden.shape[1], len(state)
    if not 0 <= good_index < num_labels:
        raise ValueError(f"step_score: good_index must be within [0, {num_labels}), got {good_index}")
    _check("weight", weight, (num_labels, size), dtype)
    _check("rows", rows, (n,), torch.int32)
    _check("slot", slot, (n,), torch.int32)
    _check("state", state, (num_slots, 4), torch.float32)
    _check("counts", counts, (num_slots,), torch.int32)
    if bias is not None:
        _check("bias", bias, (num_labels,), dtype)
    if mask is not None:
        _check("mask", mask, (n,), torch.bool)
    if impl == "reference":
        _check_range("rows", rows, len(hidden))
        _check_range("slot", slot, num_slots)
        return reference.step_score(hidden, rows, weight, bias, good_index, state, counts, slot, mask)
    if impl == "triton":
        kernels = load_triton("step_score", hidden)
        return kernels.step_score(hidden, rows, weight, bias, good_index, state, counts, slot, mask)
    if impl == "cuda":
        return cuda.step_score(hidden, rows, weight, bias, good_index, state, counts, slot, mask=mask)
    if mask is not None:
        scores = torch.full((n,), torch.nan)
        chosen = rows[mask], weight, bias, good_index, state, counts, slot[mask]
        scores[mask] = step_score(hidden, *chosen, impl=impl, isa=isa)
        return scores
    scores = torch.empty(n, dtype=torch.float32)
    _native.step_score(
        hidden.data_ptr(),
        hidden.stride(0),
        hidden.shape[0],
        rows.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        size,
        num_labels,
        good_index,
        state.data_ptr(),
        counts.data_ptr(),
        num_slots,
        slot.data_ptr(),
        scores.data_ptr(),
        n,
        dtype is torch.bfloat16,
        isa,
    )
    return scores


def _check(name: str, x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if x.shape != shape or x.dtype is not dtype or not x.is_contiguous():
        raise ValueError(f"step_score: {name} must be contiguous, {shape} {dtype}, got {_describe(x)}")


def _check_range(name: str, x: torch.Tensor, limit: int) -> None:
    for i, value in enumerate(x.tolist()):
        if not 0 <= value < limit:
            raise ValueError(f"step_score: {name}[{i}] is {value}, must be within [0, {limit})")


def _describe(x: torch.Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} with strides {x.stride()} on {x.device}"
