"""swiglu: what may be passed, and who computes it."""

from __future__ import annotations

import torch

from ttc_kernels import _native
from ttc_kernels.checks import check_rows, describe
from ttc_kernels.choice import DTYPES, chooser, load_triton
from ttc_kernels.swiglu import reference

choose = chooser("swiglu")


def swiglu(
    gate_up: torch.Tensor,  # (rows, 2 * size): the gates, then the ups; rows may be strided, elements not
    out: torch.Tensor | None = None,  # (rows, size); written and returned; may be the gates' half of gate_up
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> torch.Tensor:
    """silu(gate) * up, (rows, size).

    Both are float32 or bfloat16, in Triton also float16. `impl` is "auto" (see choice.py), "native" (CPU), "triton" or
    "reference"; `isa` picks the native build ("portable", "avx2", "avx512"). Raises ValueError for anything else.
    """
    impl = choose(impl, gate_up)
    dtype, shape = gate_up.dtype, gate_up.shape
    if (
        dtype not in DTYPES[impl]
        or len(shape) != 2
        or shape[1] % 2
        or gate_up.stride(1) != 1
        or (impl == "native" and not gate_up.is_cpu)
    ):
        raise ValueError(
            "swiglu: gate_up must be (rows, 2 * size) float32 or bfloat16 with adjacent elements on a CPU, in "
            f"Triton also float16 or on a GPU, got {describe(gate_up)} for impl {impl!r}"
        )
    rows, size = shape[0], shape[1] // 2
    if out is None:
        out = gate_up.new_empty((rows, size))
    else:
        check_rows("swiglu", "out", out, (rows, size), dtype, gate_up.device)
    if impl == "reference":
        return reference.swiglu(gate_up, out)
    if impl == "triton":
        return load_triton("swiglu", gate_up).swiglu(gate_up, out)
    _native.swiglu(gate_up, out, isa)
    return out
