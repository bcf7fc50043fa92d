"""rms_norm: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels import _native
from ttc_kernels.checks import check_rows, check_tensor, describe
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.rms_norm import reference

choose = chooser("rms_norm")


def rms_norm(
    x: torch.Tensor,  # (rows, hidden); rows may be strided, elements not
    weight: torch.Tensor,  # (hidden,)
    eps: float,
    residual: torch.Tensor | None = None,  # (rows, hidden); becomes residual + x, and the sum is normed
    out: torch.Tensor | None = None,  # (rows, hidden); written and returned; may be x
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight for every row.

    All tensors are float32 or all bfloat16, in Triton also float16. `impl` is "auto" (see choice.py), "native" (CPU),
    "triton" or "reference"; `isa` picks the native build ("portable", "avx2", "avx512"). Raises ValueError for anything
    else.
    """
    impl = choose(impl, x)
    dtype, shape, device = x.dtype, x.shape, x.device
    if dtype not in DTYPES[impl] or len(shape) != 2 or (impl == "native" and not x.is_cpu):
        raise ValueError(
            "rms_norm: x must be (rows, hidden) float32 or bfloat16 on a CPU, in Triton also float16 or on a GPU, "
            f"got {describe(x)} for impl {impl!r}"
        )
    if out is None:
        out = x.new_empty(shape)
    check_tensor("rms_norm", "weight", weight, shape[1:], dtype, device)
    check_rows("rms_norm", "x", x, shape, dtype, device)
    check_rows("rms_norm", "out", out, shape, dtype, device)
    if residual is not None:
        check_rows("rms_norm", "residual", residual, shape, dtype, device)
    if impl == "reference":
        return reference.rms_norm(x, weight, eps, residual, out)
    if impl == "triton":
        return load_triton("rms_norm", x).rms_norm(x, weight, eps, residual, out)
    _native.rms_norm(x, weight, eps, residual, out, isa)
    return out
