"""step_score on an NVIDIA GPU: final RMSNorm, head, score and fold in one launch."""

from __future__ import annotations

import torch

from ttc_kernels.cuda import Library, describe, library

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def step_score(
    hidden: torch.Tensor,  # (num_hidden_rows, size)
    rows: torch.Tensor | None,  # (n,) int32: which rows of hidden are scored; None: row i is score i's
    weight: torch.Tensor,  # (labels, size)
    bias: torch.Tensor | None,  # (labels,)
    good_index: int,
    state: torch.Tensor,  # (num_slots, 4) float32: last, min, product, mean of each slot
    counts: torch.Tensor,  # (num_slots,) int32: scores folded into each slot so far
    slot: torch.Tensor,  # (n,) int32: where each score goes, in this order
    *,
    mask: torch.Tensor | None = None,  # (n,) bool: which of them are scored at all; None: all
    norm_weight: torch.Tensor | None = None,  # (size,): hidden goes through rms_norm first
    eps: float = 0.0,  # of the norm
    lib: Library | None = None,
) -> torch.Tensor:
    """`reference.step_score` where `mask` is set, of hidden or of its `rms_norm`; scores elsewhere are NaN.

    A score with a slot out of range is left out, one with a row out of range is NaN: nothing is read back to
    check them. Raises ValueError for what the kernel does not have, RuntimeError where the launch fails.
    """
    lib = lib or library()
    given = {"rows": rows, "weight": weight, "bias": bias, "state": state, "counts": counts, "slot": slot}
    given |= {"mask": mask, "norm_weight": norm_weight}
    device = lib.check_device("step_score", hidden=hidden, **given)
    if hidden.ndim != 2 or hidden.stride(1) != 1 or hidden.dtype not in _TYPES:
        raise ValueError(
            "step_score: hidden must be (rows, size) float32, float16 or bfloat16 with adjacent elements, got "
            f"{describe(hidden)}"
        )
    num_labels, n, size, num_slots = len(weight), len(slot), hidden.shape[1], len(state)
    if not 0 <= good_index < num_labels:
        raise ValueError(f"step_score: good_index must be within [0, {num_labels}), got {good_index}")
    shapes = {
        "rows": ((n,), torch.int32),
        "weight": ((num_labels, size), hidden.dtype),
        "bias": ((num_labels,), hidden.dtype),
        "state": ((num_slots, 4), torch.float32),
        "counts": ((num_slots,), torch.int32),
        "slot": ((n,), torch.int32),
        "mask": ((n,), torch.bool),
        "norm_weight": ((size,), hidden.dtype),
    }
    for name, (shape, dtype) in shapes.items():
        x = given[name]
        if x is not None and (x.shape != shape or x.dtype is not dtype or not x.is_contiguous()):
            raise ValueError(f"step_score: {name} must be contiguous, {shape} {dtype}, got {describe(x)}")
    scores = torch.full((n,), float("nan"), dtype=torch.float32, device=device)

    def address(x: torch.Tensor | None) -> int:
        return 0 if x is None else x.data_ptr()

    lib.call(
        "step_score",
        device,
        f"{n} scores of hidden {describe(hidden)} with {num_labels} labels",
        hidden.data_ptr(),
        hidden.stride(0),
        hidden.shape[0],
        address(rows),
        address(mask),
        address(norm_weight),
        weight.data_ptr(),
        address(bias),
        size,
        num_labels,
        good_index,
        state.data_ptr(),
        counts.data_ptr(),
        num_slots,
        slot.data_ptr(),
        scores.data_ptr(),
        n,
        _TYPES[hidden.dtype],
        eps,
    )
    return scores
