"""sample_head: the LM head and a draw from its logits. In CUDA they are one kernel, and logits are never stored."""

from __future__ import annotations

import torch

from ttc_kernels.choice import chooser
from ttc_kernels.sample import cuda
from ttc_kernels.sample.api import sample

choose = chooser("sample_head")


def sample_head(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    *,
    is_filtered: bool = True,
    marks: torch.Tensor | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, ...]:
    """One token a row: (tokens int32, logprobs float32), each (rows,), as `sample` of hidden @ weight.T.

    With `marks`, (vocab + 1,) bool, a third one follows: (rows,) bool, `marks[token]` of each row's token, the last
    being that of the error token -1. In CUDA it is looked up by the launch that draws.

    hidden is (rows, size), weight (vocab, size), of one floating type; the rest is `sample`'s. `is_filtered` says
    whether any row has top-k, top-p or min-p set, which nobody can see on a GPU without waiting for it; where it is
    False they are not read. `impl` is "auto" (see choice.py; with filters it leaves "cuda" out), "cuda" (no filters,
    float16 or bfloat16, logits summed and kept in float32) or one of `sample`'s, over torch's product, rounded to
    hidden's type. Raises ValueError for anything else.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            "sample_head: hidden must be (rows, size) and weight (vocab, size) of one type, got "
            f"{tuple(hidden.shape)} {hidden.dtype}, {tuple(weight.shape)} {weight.dtype}"
        )
    if marks is not None and (marks.shape != (len(weight) + 1,) or marks.dtype is not torch.bool):
        raise ValueError(
            f"sample_head: marks must be ({len(weight) + 1},) bool, got {tuple(marks.shape)} {marks.dtype}"
        )
    chosen = choose(impl, hidden)
    if chosen == "cuda" and not is_filtered:
        stops = None
        if marks is not None:
            rule = torch.zeros(len(hidden), dtype=torch.int32, device=hidden.device)
            stops = cuda.Stops(marks[None], rule, torch.zeros_like(marks))
        tokens, logprobs, flags = cuda.sample_head(hidden, weight, keys, positions, temperature, stops)
        return (tokens, logprobs) if flags is None else (tokens, logprobs, flags.view(torch.bool))
    if impl == "cuda":
        raise ValueError("sample_head: impl 'cuda' has no filters, got rows with top-k, top-p or min-p")
    logits = torch.mm(hidden, weight.t()).float()
    unfused = "auto" if chosen == "cuda" else chosen
    tokens, logprobs = sample(logits, keys, positions, temperature, top_k, top_p, min_p, impl=unfused)
    return (tokens, logprobs) if marks is None else (tokens, logprobs, marks[tokens.long()])
