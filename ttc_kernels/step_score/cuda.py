"""step_score on an NVIDIA GPU: final RMSNorm, head, score and fold in one launch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch

from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.cuda import Library, library
from ttc_kernels.step_score.reference import LabelHead

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class StepScoreArgs(ctypes.Structure):
    """StepScoreArgs of csrc/step_score/step_score.cu: addresses, None where there is no tensor, and sizes."""

    _fields_ = (
        ("hidden", ctypes.c_void_p),
        ("hidden_stride", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("num_labels", ctypes.c_int64),
        ("good_index", ctypes.c_int64),
        ("state", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("num_slots", ctypes.c_int64),
        ("slot", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("num_hidden_rows", ctypes.c_int64),
        ("type", ctypes.c_int64),
    )


def step_score(
    hidden: torch.Tensor,  # (num_hidden_rows, size)
    rows: torch.Tensor | None,  # (n,) int32: which rows of hidden are scored; None: score i is that of row i
    head: LabelHead,
    state: torch.Tensor | None = None,  # (num_slots, 4) float32: last, min, product, mean of each slot
    counts: torch.Tensor | None = None,  # (num_slots,) int32: scores folded into each slot so far
    slot: torch.Tensor | None = None,  # (n,) int32: the slot that each score is folded into, in this order
    *,
    mask: torch.Tensor | None = None,  # (n,) bool: which of them are scored at all; None: all
    norm_weight: torch.Tensor | None = None,  # (size,): hidden goes through rms_norm first
    eps: float = 0.0,  # of the norm
    lib: Library | None = None,
) -> torch.Tensor:
    """`reference.step_score` where `mask` is set, of hidden or of its `rms_norm`; scores elsewhere are NaN.

    Without state, counts and slot nothing is folded.

    Indices are not read back to be checked: a score with a slot out of range is not folded, and one with a row out of
    range is NaN. Raises ValueError for arguments that the kernel does not support, RuntimeError where the launch fails.
    """
    lib = lib or library()
    given = {"rows": rows, "weight": head.weight, "bias": head.bias, "state": state, "counts": counts, "slot": slot}
    given |= {"mask": mask, "norm_weight": norm_weight}
    device = lib.check_device("step_score", hidden=hidden, **given)
    _check(hidden, head, given)
    num_labels, n = len(head.weight), _num_scores(hidden, given)
    scores = torch.empty(n, dtype=torch.float32, device=device)
    args = StepScoreArgs(
        hidden=hidden.data_ptr(),
        hidden_stride=hidden.stride(0),
        eps=eps,
        size=hidden.shape[1],
        num_labels=num_labels,
        good_index=head.good_index,
        num_slots=0 if state is None else len(state),
        scores=scores.data_ptr(),
        n=n,
        num_hidden_rows=len(hidden),
        type=_TYPES[hidden.dtype],
        **{name: None if x is None else x.data_ptr() for name, x in given.items()},
    )
    lib.call("step_score", device, lambda: f"{n} scores of hidden {describe(hidden)}, {num_labels} labels", args)
    return scores


def _num_scores(hidden: torch.Tensor, given: Mapping[str, torch.Tensor | None]) -> int:
    return len(next((given[name] for name in ("slot", "rows") if given[name] is not None), hidden))


def _check(hidden: torch.Tensor, head: LabelHead, given: Mapping[str, torch.Tensor | None]) -> None:
    if hidden.ndim != 2 or hidden.stride(1) != 1 or hidden.dtype not in _TYPES:
        raise ValueError(
            "step_score: hidden must be (rows, size) float32, float16 or bfloat16 with adjacent elements, got "
            f"{describe(hidden)}"
        )
    num_labels, n, size = len(head.weight), _num_scores(hidden, given), hidden.shape[1]
    num_slots = 0 if given["state"] is None else len(given["state"])
    if not 0 <= head.good_index < num_labels:
        raise ValueError(f"step_score: good_index must be within [0, {num_labels}), got {head.good_index}")
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
        if given[name] is not None:
            check_tensor("step_score", name, given[name], shape, dtype, hidden.device)
