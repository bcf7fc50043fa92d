"""sample_head: the LM head and a draw from its logits. In CUDA they are one kernel, and logits are never stored."""

from __future__ import annotations

import torch

from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.choice import chooser
from ttc_kernels.sample import cuda
from ttc_kernels.sample.api import check_sampling, sample
from ttc_kernels.sample.reference import RowSampling

choose = chooser("sample_head")


def sample_head(
    hidden: torch.Tensor,  # (rows, size)
    weight: torch.Tensor,  # (vocab, size), of hidden's type
    sampling: RowSampling,  # how each row is drawn; a plain sequence of its six tensors will do
    *,
    is_filtered: bool = True,  # whether any row has top-k, top-p or min-p set
    marks: torch.Tensor | None = None,  # (vocab + 1,) bool; the last one is that of the error token -1
    impl: str = "auto",
) -> tuple[torch.Tensor, ...]:
    """One token a row: (tokens int32, logprobs float32), each (rows,), as `sample` of hidden @ weight.T.

    With `marks` a third tensor follows: (rows,) bool, `marks[token]` of each row's token, which in CUDA the launch
    that draws looks up. `is_filtered` is an argument because finding it out on a GPU would mean waiting for it; where
    it is False the filters are not read. `impl` is "auto" (see choice.py; not "cuda" where rows are filtered), "cuda"
    (no filters, float16 or bfloat16, logits summed and kept in float32) or one of `sample`'s, over torch's product,
    rounded to hidden's type. Raises ValueError for anything else.
    """
    _check(hidden, weight, marks)
    check_sampling("sample_head", sampling, (len(hidden),), hidden.device)
    chosen = choose(impl, hidden)
    if chosen == "cuda" and not is_filtered:
        return _fused(hidden, weight, sampling, marks)
    if impl == "cuda":
        raise ValueError("sample_head: impl 'cuda' has no filters, got rows with top-k, top-p or min-p")
    logits = torch.mm(hidden, weight.t()).float()
    tokens, logprobs = sample(logits, *sampling, impl="auto" if chosen == "cuda" else chosen)
    return (tokens, logprobs) if marks is None else (tokens, logprobs, marks[tokens.long()])


def _check(hidden: torch.Tensor, weight: torch.Tensor, marks: torch.Tensor | None) -> None:
    is_product = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not is_product or hidden.dtype != weight.dtype or hidden.device != weight.device:
        raise ValueError(
            "sample_head: hidden must be (rows, size) and weight (vocab, size) of one type on one device, got "
            f"{describe(hidden)}, {describe(weight)}"
        )
    if marks is not None:
        check_tensor("sample_head", "marks", marks, (len(weight) + 1,), torch.bool, hidden.device)


def _fused(
    hidden: torch.Tensor, weight: torch.Tensor, sampling: RowSampling, marks: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """In CUDA, without filters; the kernel's table of step ends serves as the marks."""
    keys, positions, temperature, *_ = sampling
    stops = None
    if marks is not None:
        rule = torch.zeros(len(hidden), dtype=torch.int32, device=hidden.device)
        stops = cuda.Stops(marks[None], rule, torch.zeros_like(marks))
    tokens, logprobs, flags = cuda.sample_head(hidden, weight, keys, positions, temperature, stops)
    return (tokens, logprobs) if flags is None else (tokens, logprobs, flags.view(torch.bool))
