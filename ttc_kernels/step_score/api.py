"""step_score: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels import _native
from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.step_score import cuda, reference
from ttc_kernels.step_score.reference import LabelHead

choose = chooser("step_score")


def step_score(
    hidden: torch.Tensor,  # (num_hidden_rows, size) float32 or bfloat16, on a GPU also float16
    rows: torch.Tensor,  # (n,) int32: which rows of hidden are scored
    head: LabelHead,  # of hidden's type
    state: torch.Tensor | None = None,  # (num_slots, 4) float32: last, min, product, mean of each slot; changed
    counts: torch.Tensor | None = None,  # (num_slots,) int32: scores folded into each slot so far; changed in place
    slot: torch.Tensor | None = None,  # (n,) int32: the slot that each score is folded into
    mask: torch.Tensor | None = None,  # (n,) bool: which of the rows are scored at all; None: all
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> torch.Tensor:
    """The scores of `rows` of `hidden`, (n,) float32, folded in order into `state[slot]`; without these three, alone.

    A score is the sigmoid of the one label, or the softmax probability of label `head.good_index` of several. Where
    `mask` is not set nothing is computed or folded and the score is NaN. A computed score that is NaN is NaN in `last`
    too. `impl` is "auto" (see choice.py), "native" (CPU), "triton", "cuda" or "reference"; `isa` picks the native
    build. Raises ValueError for other shapes or types and for a row, slot or good_index out of range, with nothing
    changed; on a GPU, where an error would wait for the device, a row out of range scores NaN, and neither that score
    nor one for a slot out of range is folded.
    """
    impl = choose(impl, hidden)
    _check_hidden(hidden, impl)
    _check_others(hidden, rows, head, state, counts, slot, mask)
    if impl == "reference":
        _check_range("rows", rows, len(hidden))
        if slot is not None:
            _check_range("slot", slot, len(state))
        return reference.step_score(hidden, rows, head, state, counts, slot, mask)
    if impl == "triton":
        return load_triton("step_score", hidden).step_score(hidden, rows, head, state, counts, slot, mask)
    if impl == "cuda":
        return cuda.step_score(hidden, rows, head, state, counts, slot, mask=mask)
    if slot is None:  # the native kernel always folds
        n = len(rows)
        state, counts, slot = torch.empty(n, 4), torch.zeros(n, dtype=torch.int32), torch.arange(n, dtype=torch.int32)
    if mask is not None:
        scores = torch.full((len(rows),), torch.nan)
        scores[mask] = step_score(hidden, rows[mask], head, state, counts, slot[mask], impl=impl, isa=isa)
        return scores
    scores = torch.empty(len(rows), dtype=torch.float32)
    weight, bias, good_index = head
    _native.step_score(hidden, rows, weight, bias, good_index, state, counts, slot, scores, isa)
    return scores


def _check_hidden(hidden: torch.Tensor, impl: str) -> None:
    if (
        hidden.dtype not in DTYPES[impl]
        or hidden.dim() != 2
        or hidden.stride(1) != 1
        or (impl == "native" and not hidden.is_cpu)
    ):
        raise ValueError(
            "step_score: hidden must be (rows, size) float32 or bfloat16 with adjacent elements on a CPU, in Triton "
            f"also float16 or on a GPU, got {describe(hidden)} for impl {impl!r}"
        )


def _check_others(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    head: LabelHead,
    state: torch.Tensor | None,
    counts: torch.Tensor | None,
    slot: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> None:
    weight, bias, good_index = head
    num_labels, n, size, num_slots = len(weight), len(rows), hidden.shape[1], 0 if state is None else len(state)
    if len({x is None for x in (state, counts, slot)}) > 1:
        raise ValueError("step_score: state, counts and slot go together, got only some of them")
    if not 0 <= good_index < num_labels:
        raise ValueError(f"step_score: good_index must be within [0, {num_labels}), got {good_index}")
    for name, x, shape, dtype in (
        ("weight", weight, (num_labels, size), hidden.dtype),
        ("bias", bias, (num_labels,), hidden.dtype),
        ("rows", rows, (n,), torch.int32),
        ("slot", slot, (n,), torch.int32),
        ("mask", mask, (n,), torch.bool),
        ("state", state, (num_slots, 4), torch.float32),
        ("counts", counts, (num_slots,), torch.int32),
    ):
        if x is not None or name in ("weight", "rows"):
            check_tensor("step_score", name, x, shape, dtype, hidden.device)


def _check_range(name: str, x: torch.Tensor, limit: int) -> None:
    for i, value in enumerate(x.tolist()):
        if not 0 <= value < limit:
            raise ValueError(f"step_score: {name}[{i}] is {value}, must be within [0, {limit})")
