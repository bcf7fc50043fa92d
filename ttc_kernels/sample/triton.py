"""sample on a GPU: a program a row.

Tokens are ranked by descending logit, ties by index. Every filter keeps a prefix of that ranking, so all of them
together amount to one cut: the rank of the last logit that is kept, and the last token kept at that rank. Finding it
takes a bisection over ranks and no sort; a row without top-k and top-p skips it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = tl.constexpr(2048)  # most tokens that a program reads at a time
NO_TOKEN = tl.constexpr(2**31 - 1)  # greater than every token
LEAST_RANK = tl.constexpr(-(2**31 - 2**23))  # the rank of the lowest finite logit
MAX_FLOAT = tl.constexpr(3.4028234663852886e38)


@triton.jit
def _rank(x):
    """int32 that orders as float32 x does, with -0 as 0."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unrank(rank):
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _load(logits_ptr, start, vocab, BLOCK: tl.constexpr):
    """(token indices, their logits); past the row's end -Inf, a logit that changes nothing."""
    index = start + tl.arange(0, BLOCK)
    return index, tl.load(logits_ptr + index, mask=index < vocab, other=-float("inf"))


@triton.jit
def _is_kept(index, x, cut, last_tie):
    """Whether each token is above -Inf and not past the cut."""
    rank = _rank(x)
    return (x > -float("inf")) & ((rank > cut) | ((rank == cut) & (index <= last_tie)))


@triton.jit
def _top(logits_ptr, vocab, BLOCK: tl.constexpr):
    """(the highest logit, whether the row holds NaN or +Inf or nothing but -Inf)."""
    top = tl.full((), -float("inf"), tl.float32)
    num_nan = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        _, x = _load(logits_ptr, start, vocab, BLOCK)
        num_nan += tl.sum((x != x).to(tl.int32), 0)
        top = tl.maximum(top, tl.max(tl.where(x != x, -float("inf"), x), 0))
    return top, (num_nan > 0) | (top == float("inf")) | (top == -float("inf"))


@triton.jit
def _measure(logits_ptr, vocab, top, rate, cut, last_tie, least, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Measures the kept tokens of rank `least` and above: (their weight, their number, the lowest of their ranks, the
    highest rank below `least` of a kept token).

    The weight, in float64, is the sum of exp((logit - top) * rate), or, not BY_MASS, again the number.
    """
    total = tl.full((), 0.0, tl.float64)
    num = tl.full((), 0, tl.int32)
    lowest = tl.full((), NO_TOKEN, tl.int32)
    below = tl.full((), LEAST_RANK, tl.int32)
    for start in range(0, vocab, BLOCK):
        index, x = _load(logits_ptr, start, vocab, BLOCK)
        rank = _rank(x)
        is_kept = _is_kept(index, x, cut, last_tie)
        is_counted = is_kept & (rank >= least)
        lowest = tl.minimum(lowest, tl.min(tl.where(is_counted, rank, NO_TOKEN), 0))
        below = tl.maximum(below, tl.max(tl.where(is_kept & (rank < least), rank, LEAST_RANK), 0))
        num += tl.sum(is_counted.to(tl.int32), 0)
        if BY_MASS:
            total += tl.sum(tl.where(is_counted, tl.exp((x - top) * rate), 0.0), 0).to(tl.float64)
    if not BY_MASS:
        total = num.to(tl.float64)
    return total, num, lowest, below


@triton.jit
def _nth_of_rank(logits_ptr, vocab, rank, n, BLOCK: tl.constexpr):
    """Index of the n-th token, counted from 1, with this rank."""
    found = tl.full((), NO_TOKEN, tl.int32)
    num_seen = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        index, x = _load(logits_ptr, start, vocab, BLOCK)
        is_tie = ((_rank(x) == rank) & (index < vocab)).to(tl.int32)
        is_it = (is_tie == 1) & (num_seen + tl.cumsum(is_tie, 0) == n)
        found = tl.minimum(found, tl.min(tl.where(is_it, index, NO_TOKEN), 0))
        num_seen += tl.sum(is_tie, 0)
    return found


@triton.jit
def _tighten(logits_ptr, vocab, top, rate, cut, last_tie, num, target, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The cut after which the kept tokens' weight, over `num` tokens, first reaches `target`.

    Bisects until one token, or one group of ties, is left between `low`, which reaches the target, and `high`, which
    does not. Both always move to the nearest rank that occurs.
    """
    low = tl.full((), LEAST_RANK, tl.int32)
    high = _rank(top) + 1
    total_high = tl.full((), 0.0, tl.float64)
    num_low = num
    num_high = tl.full((), 0, tl.int32)
    while (low + 1 < high) & (num_low - num_high > 1):
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, rounded down, without overflow
        weight, count, lowest, below = _measure(logits_ptr, vocab, top, rate, cut, last_tie, middle, BY_MASS, BLOCK)
        is_reached = weight >= target
        low = tl.where(is_reached, lowest, low)
        num_low = tl.where(is_reached, count, num_low)
        high = tl.where(is_reached, high, below + 1)
        num_high = tl.where(is_reached, num_high, count)
        total_high = tl.where(is_reached, total_high, weight)
    num_ties = num_low - num_high
    if num_ties > 1:
        weight = tl.full((), 1.0, tl.float64)
        if BY_MASS:
            weight = tl.exp((_unrank(low) - top) * rate).to(tl.float64)
        wanted = (target - total_high) / tl.maximum(weight, 1e-300)
        num_wanted = tl.minimum(wanted, num_ties.to(tl.float64)).to(tl.int32)
        num_wanted += (num_wanted.to(tl.float64) < wanted).to(tl.int32)  # up to a whole token
        num_wanted = tl.minimum(tl.maximum(num_wanted, 1), num_ties)
        if (num_wanted < num_ties) | (low > cut):
            last_tie = _nth_of_rank(logits_ptr, vocab, low, num_wanted, BLOCK)
        cut = low
    elif low > cut:
        cut = low
        last_tie = tl.full((), NO_TOKEN, tl.int32)
    return cut, last_tie


@triton.jit
def _exponential(bits):
    """-log(u) of u = ((bits >> 8) + 0.5) / 2^24, to a few ulp everywhere."""
    high = (bits >> 8).to(tl.int32)
    u = (high.to(tl.float32) + 0.5) * (1.0 / 16777216.0)
    # Above 1/2 from the complement, which a float holds exactly, by log1p's identity; 1 - c rounds, the quotient
    # makes up for it.
    c = ((high ^ 0xFFFFFF).to(tl.float32) + 0.5) * (1.0 / 16777216.0)
    w = 1.0 - c
    near_one = tl.where(w == 1.0, c, -tl.log(w) * (c / tl.where(w == 1.0, 1.0, 1.0 - w)))
    return tl.where(high >= 0x800000, near_one, -tl.log(u))


@triton.jit
def _random_bits(key, position, start, BLOCK: tl.constexpr):
    """32 bits for each of tokens start .. start + BLOCK - 1, of which start is a multiple of 4: see reference.py."""
    counter = start // 4 + tl.arange(0, BLOCK // 4)
    zero = tl.zeros_like(counter)
    a, b, c, d = tl.philox(key, zero + position, counter, zero, zero)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _draw(logits_ptr, vocab, top, rate, cut, last_tie, is_greedy, key, position, BLOCK: tl.constexpr):
    """The token with the highest perturbed logit, of equals the first."""
    best = tl.full((), -float("inf"), tl.float32)
    token = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        index, x = _load(logits_ptr, start, vocab, BLOCK)
        perturbed = (x - top) * rate - tl.log(_exponential(_random_bits(key, position, start, BLOCK)))
        perturbed = tl.where(_is_kept(index, x, cut, last_tie), perturbed, -float("inf"))
        score = tl.where(is_greedy, x, perturbed)
        best_here = tl.max(score, 0)
        here = tl.min(tl.where(score == best_here, index, NO_TOKEN), 0)
        token = tl.where(best_here > best, here, token)
        best = tl.maximum(best, best_here)
    return token


@triton.jit
def _sample(
    logits_ptr,
    keys_ptr,
    positions_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    tokens_ptr,
    logprobs_ptr,
    logits_stride,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * logits_stride
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    position = tl.load(positions_ptr + row)
    top, is_bad = _top(logits_ptr, vocab, BLOCK)
    is_allowed = (temperature >= 0) & (temperature < float("inf")) & (top_k >= 0) & (position >= 0)
    is_allowed = is_allowed & (top_p > 0) & (top_p <= 1) & (min_p >= 0) & (min_p <= 1)
    token = tl.full((), -1, tl.int32)
    logprob = tl.full((), float("nan"), tl.float32)
    if is_allowed & (is_bad == 0):
        is_greedy = temperature == 0
        wide_temperature = tl.where(is_greedy, 1.0, temperature).to(tl.float64)
        wide_rate = 1.0 / wide_temperature
        rate = tl.minimum(wide_rate, MAX_FLOAT).to(tl.float32)
        cut = tl.full((), LEAST_RANK, tl.int32)
        last_tie = tl.full((), NO_TOKEN, tl.int32)
        mass, num, _, _ = _measure(logits_ptr, vocab, top, rate, cut, last_tie, cut, True, BLOCK)
        logprob_top = -tl.log(mass.to(tl.float32))
        if is_greedy == 0:
            if (top_k > 0) & (top_k < num):
                k = top_k.to(tl.float64)
                cut, last_tie = _tighten(logits_ptr, vocab, top, rate, cut, last_tie, num, k, False, BLOCK)
                mass, num, _, _ = _measure(logits_ptr, vocab, top, rate, cut, last_tie, cut, True, BLOCK)
            if top_p < 1:
                target = top_p.to(tl.float64) * mass
                cut, last_tie = _tighten(logits_ptr, vocab, top, rate, cut, last_tie, num, target, True, BLOCK)
            if min_p > 0:
                least = top.to(tl.float64) + tl.log(min_p).to(tl.float64) * wide_temperature
                rank = _rank(least.to(tl.float32))
                rank += (_unrank(rank).to(tl.float64) < least).to(tl.int32)
                last_tie = tl.where(rank > cut, NO_TOKEN, last_tie)
                cut = tl.maximum(cut, rank)
        key = tl.load(keys_ptr + row)
        token = _draw(logits_ptr, vocab, top, rate, cut, last_tie, is_greedy, key, position, BLOCK)
        behind = (tl.load(logits_ptr + token).to(tl.float64) - top.to(tl.float64)) * wide_rate
        logprob = (behind + logprob_top.to(tl.float64)).to(tl.float32)
    tl.store(tokens_ptr + row, token)
    tl.store(logprobs_ptr + row, logprob)


def sample(
    logits: torch.Tensor,  # (rows, vocab) float32
    keys: torch.Tensor,  # (rows,) int64
    positions: torch.Tensor,  # (rows,) int32
    temperature: torch.Tensor,  # (rows,) float32; 0 takes the argmax
    top_k: torch.Tensor,  # (rows,) int32; 0 keeps all
    top_p: torch.Tensor,  # (rows,) float32; 1 keeps all
    min_p: torch.Tensor,  # (rows,) float32, relative to the highest probability; 0 keeps all
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows == 0:
        return tokens, logprobs
    block = min(BLOCK.value, max(16, triton.next_power_of_2(vocab)))
    _sample[(rows,)](
        logits,
        keys,
        positions,
        temperature,
        top_k,
        top_p,
        min_p,
        tokens,
        logprobs,
        logits.stride(0),
        vocab,
        BLOCK=block,
        num_warps=8 if block >= 1024 else 1,
    )
    return tokens, logprobs
