"""The definition of sample, in float64.

A token is the argmax of logits / T plus Gumbel noise over the tokens that the filters keep. The noise of
token v at `position` comes from Philox4x32-10 with the row's 64-bit key (low word first), the counter
(position, v // 4, 0, 0) and the output word v % 4, so it depends on nothing else in the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

WORD = 0xFFFFFFFF


class RowSampling(NamedTuple):
    """How one token of each row is drawn: the arguments of `sample` after the logits."""

    keys: torch.Tensor
    """(rows,) int64: the bits of a uint64, which choose the row's noise."""
    positions: torch.Tensor
    """(rows,) int32 >= 0: the position of the drawn token in its text, which chooses the noise too."""
    temperature: torch.Tensor
    """(rows,) float32 >= 0; 0 takes the argmax, of equal logits the one with the lowest index."""
    top_k: torch.Tensor
    """(rows,) int32 >= 0; 0 keeps all."""
    top_p: torch.Tensor
    """(rows,) float32 within (0, 1]; 1 keeps all."""
    min_p: torch.Tensor
    """(rows,) float32 within [0, 1], relative to the highest probability; 0 keeps all."""


def philox(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """Philox4x32-10: four counter words and two key words, 32 bits in int64 each -> four output words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 keeps the low 64 bits
        c0, c2 = (product1 >> 32 & WORD) ^ c1 ^ k0, (product0 >> 32 & WORD) ^ c3 ^ k1
        c1, c3 = product1 & WORD, product0 & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return [c0, c1, c2, c3]


def gumbel(keys: torch.Tensor, positions: torch.Tensor, vocab: int) -> torch.Tensor:
    """The noise, (rows, vocab) float64, for keys (rows,) int64 and positions (rows,) int32."""
    index = torch.arange((vocab + 3) // 4).expand(len(keys), -1)
    zero = torch.zeros_like(index)
    position = positions.long()[:, None].expand_as(index) & WORD
    key = [keys[:, None] & WORD, keys[:, None] >> 32 & WORD]
    words = torch.stack(philox([position, index, zero, zero], key), dim=-1).flatten(1)[:, :vocab]
    uniform = ((words >> 8).double() + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform))


def keep(
    logits: torch.Tensor,  # (rows, vocab) float64
    temperature: torch.Tensor,  # (rows, 1) float64, > 0
    top_k: torch.Tensor,  # (rows, 1)
    top_p: torch.Tensor,  # (rows, 1)
    min_p: torch.Tensor,  # (rows, 1)
) -> torch.Tensor:
    """Which tokens the filters keep, (rows, vocab) bool. Ties rank by index."""
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    z = (ranked - ranked[:, :1]) / temperature
    rank = torch.arange(logits.shape[1]).expand_as(order)
    kept = (top_k == 0) | (rank < top_k)
    mass = torch.where(kept, z.exp(), 0.0)
    before = mass.cumsum(-1) - mass
    kept &= (top_p == 1) | (before < top_p.double() * mass.sum(-1, keepdim=True)) | (rank == 0)
    kept &= (min_p == 0) | (z >= min_p.double().log())
    return torch.zeros_like(kept).scatter(1, order, kept)


def sample(
    logits: torch.Tensor,  # (rows, vocab) float32
    keys: torch.Tensor,  # (rows,) int64
    positions: torch.Tensor,  # (rows,) int32
    temperature: torch.Tensor,  # (rows,) float32; 0 takes the argmax
    top_k: torch.Tensor,  # (rows,) int32; 0 keeps all
    top_p: torch.Tensor,  # (rows,) float32; 1 keeps all
    min_p: torch.Tensor,  # (rows,) float32, relative to the highest probability; 0 keeps all
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.double()
    top = logits.amax(-1, keepdim=True)
    is_bad = ~torch.isfinite(top[:, 0]) | logits.isnan().any(-1)
    is_greedy = (temperature == 0)[:, None]
    scale = torch.where(is_greedy, 1.0, temperature.double()[:, None])
    z = (logits - top) / scale
    kept = keep(logits, scale, top_k[:, None], top_p[:, None], min_p[:, None])
    perturbed = torch.where(kept, z + gumbel(keys, positions, logits.shape[1]), -torch.inf)
    # torch's argmax may return any of several equal maxima: this takes the first.
    score = torch.where(is_greedy, logits, perturbed)
    tokens = (score == score.amax(-1, keepdim=True)).int().argmax(-1)
    logprobs = z.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return (
        torch.where(is_bad, -1, tokens).to(torch.int32),
        torch.where(is_bad, torch.nan, logprobs).to(torch.float32),
    )


def sample_head(
    hidden: torch.Tensor,  # (rows, size)
    weight: torch.Tensor,  # (vocab, size)
    sampling: RowSampling,
    is_filtered: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sample` of the product in float64; `is_filtered` changes nothing."""
    return sample((hidden.double() @ weight.double().t()).float(), *sampling)
