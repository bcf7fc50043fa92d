"""sample: what may be passed, and who computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttc_kernels import _native
from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.choice import chooser, load_triton
from ttc_kernels.sample import cuda, reference
from ttc_kernels.sample.reference import RowSampling

choose = chooser("sample")
_DTYPES = (torch.int64, torch.int32, torch.float32, torch.int32, torch.float32, torch.float32)  # of a RowSampling


def sample(
    logits: torch.Tensor,  # (rows, vocab) float32; rows may be strided
    keys: torch.Tensor,  # this and the next five: the fields of RowSampling, (rows,) each
    positions: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    *,
    impl: str = "auto",
    isa: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one token a row: (tokens int32, logprobs float32), each (rows,).

    Filters apply in the order temperature, top-k, top-p, min-p. The draw depends on the row, its key and its position
    alone. A log-probability is that of the token before filters, at the row's temperature (at 1 where it is 0). A row
    with NaN or +Inf, or with -Inf only, gets token -1 and log-probability NaN. `impl` is "auto" (see choice.py),
    "native" (CPU), "triton", "cuda" or "reference"; `isa` picks the native build. Raises ValueError for anything else;
    on a GPU a row with a wrong value gets -1 and NaN instead, as an error would wait for the device.
    """
    impl = choose(impl, logits)
    shape = logits.shape
    if (
        logits.dtype is not torch.float32
        or len(shape) != 2
        or shape[1] == 0
        or logits.stride(1) != 1
        or (impl == "native" and not logits.is_cpu)
    ):
        raise ValueError(
            "sample: logits must be (rows, vocab > 0) float32 with adjacent elements on a CPU, in Triton and "
            f"CUDA on a GPU, got {describe(logits)} for impl {impl!r}"
        )
    rows = shape[:1]
    check_sampling("sample", (keys, positions, temperature, top_k, top_p, min_p), rows, logits.device)
    if impl == "reference":
        _check_values(positions, temperature, top_k, top_p, min_p)
        return reference.sample(logits, keys, positions, temperature, top_k, top_p, min_p)
    if impl == "cuda":
        return cuda.sample(logits, RowSampling(keys, positions, temperature, top_k, top_p, min_p))
    if impl == "triton":
        kernels = load_triton("sample", logits)
        return kernels.sample(logits, keys, positions, temperature, top_k, top_p, min_p)
    tokens = torch.empty(rows, dtype=torch.int32)
    logprobs = torch.empty(rows, dtype=torch.float32)
    _native.sample(logits, keys, positions, temperature, top_k, top_p, min_p, tokens, logprobs, isa)
    return tokens, logprobs


def check_sampling(op: str, sampling: Sequence[torch.Tensor], rows: Sequence[int], device: torch.device) -> None:
    """Raises ValueError unless these are the six tensors of a RowSampling, of shape `rows`."""
    for name, x, dtype in zip(RowSampling._fields, sampling, _DTYPES, strict=True):
        check_tensor(op, name, x, rows, dtype, device)


def _check_values(
    positions: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> None:
    """The checks of values that the native code makes itself."""
    is_finite = temperature.isfinite()
    for name, x, is_right, must in (
        ("temperature", temperature, is_finite & (temperature >= 0), "finite and >= 0"),
        ("top_k", top_k, top_k >= 0, ">= 0"),
        ("top_p", top_p, (top_p > 0) & (top_p <= 1), "within (0, 1]"),
        ("min_p", min_p, (min_p >= 0) & (min_p <= 1), "within [0, 1]"),
        ("positions", positions, positions >= 0, ">= 0"),
    ):
        if not is_right.all():
            row = int((~is_right).nonzero()[0])
            raise ValueError(f"sample: {name}[{row}] must be {must}, got {x[row].item():g}")
