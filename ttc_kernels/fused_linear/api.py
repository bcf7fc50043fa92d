"""fused_linear: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels.checks import check_rows, check_tensor, describe
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.fused_linear import reference
from ttc_kernels.fused_linear.tiles import Scratch, tiles_of

choose = chooser("fused_linear")


def fused_linear(
    x: torch.Tensor,  # (rows, width); rows may be strided, elements not
    weight: torch.Tensor,  # (outputs, width); if gated (2 * outputs, width): the gates', then the ups'
    norm: torch.Tensor | None = None,  # (width,): the weights of an RMSNorm of x
    eps: float = 0.0,  # of the norm
    residual: torch.Tensor | None = None,  # (rows, outputs); becomes residual + product; not x
    is_gated: bool = False,  # whether the result is silu(gate) * up
    out: torch.Tensor | None = None,  # (rows, outputs); written and returned where there is no residual; not x
    scratch: Scratch | None = None,  # where the parts of a product meet in Triton; None: made for the call
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """x @ weight.T, of the normed rows of x where there is a `norm`; `residual` or `out`, (rows, outputs).

    All tensors are of one type: float32, bfloat16 or, in Triton, float16. There the normed product must not exceed the
    type even before the row's scale divides it: float16 is for rows whose values times the norm's weights stay below
    65,504. In Triton the bits of a row do not depend on the rows beside it, as long as there are up to 16, up to 32, or
    more of them. `impl` is "auto" (see choice.py), "triton" or "reference". Raises ValueError for anything else.
    """
    impl = choose(impl, x)
    dtype, shape, device = x.dtype, x.shape, x.device
    if dtype not in DTYPES[impl] or len(shape) != 2 or not shape[1] or len(weight.shape) != 2 or not len(weight):
        raise ValueError(
            "fused_linear: x must be (rows, width) and weight (outputs, width), float32 or bfloat16, in Triton also "
            f"float16, got {describe(x)} and {describe(weight)} for impl {impl!r}"
        )
    if is_gated and len(weight) % 2:
        raise ValueError(f"fused_linear: weight must have as many gates as ups, got {len(weight)} outputs")
    if residual is not None and out is not None:
        raise ValueError("fused_linear: the result is the residual where there is one, got out too")
    result = (shape[0], len(weight) // 2 if is_gated else len(weight))
    check_rows("fused_linear", "x", x, shape, dtype, device)
    check_tensor("fused_linear", "weight", weight, (len(weight), shape[1]), dtype, device)
    if norm is not None:
        check_tensor("fused_linear", "norm", norm, shape[1:], dtype, device)
    for name, y in (("residual", residual), ("out", out)):
        if y is not None:
            check_rows("fused_linear", name, y, result, dtype, device)
            if y.data_ptr() == x.data_ptr() and len(x):
                raise ValueError(f"fused_linear: x is read while the result is written, so {name} cannot be x")
    if impl == "reference":
        return reference.fused_linear(x, weight, norm, eps, residual, is_gated, out)
    target = residual if residual is not None else x.new_empty(result) if out is None else out
    if shape[0] == 0:
        return target
    tiles = tiles_of(*result, shape[1], dtype.itemsize, is_gated)
    if scratch is None:
        scratch = Scratch([tiles], device)
    elif not scratch.holds(tiles, device):
        raise ValueError(f"fused_linear: scratch must have room for {tiles} on {device}")
    kernels = load_triton("fused_linear", x)
    return kernels.fused_linear(x, weight, norm, float(eps), residual, is_gated, target, tiles, scratch)
