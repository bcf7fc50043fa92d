"""Tensor parallelism: the processes (ranks) that hold a part of every layer each, and what they exchange.

All ranks run the same program on the same inputs, so that each knows what the others are about to send.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.nn import functional

from engine.counts import check_count
from engine.errors import UserError
from engine.model.config import ModelConfig
from ttc_kernels.sample import sample

Value = TypeVar("Value")
_VOCAB_MULTIPLE = 8  # tokens: matrix products are quick on such sizes
# What is split of a tensor, by the end of its name: its rows (0) or its columns (1). Every rank has all of the others.
_SPLIT = {f"{part}_proj.{kind}": 0 for part in ("q", "k", "v", "gate", "up") for kind in ("weight", "bias")}
_SPLIT |= {"o_proj.weight": 1, "down_proj.weight": 1}


@dataclass(frozen=True)
class Ranks:
    """The ranks of torch's process group as one of them sees them; by default one process, without any."""

    rank: int = 0
    size: int = 1

    def part(self, config: ModelConfig, origin: str = "") -> ModelConfig:
        """The layers that a rank computes. Raises UserError, which starts with `origin`, for sizes that do not divide.

        A query head goes with its KV head.
        """
        for size, what in ((config.num_kv_heads, "KV heads"), (config.intermediate_size, "intermediate values")):
            if size % self.size:
                raise UserError(f"{origin}tensor_parallel {self.size} does not divide its {size} {what}")
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=config.num_kv_heads // self.size,
            intermediate_size=config.intermediate_size // self.size,
        )

    def cut(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of a layer's tensor."""
        dim = next((dim for end, dim in _SPLIT.items() if name.endswith(end)), None)
        return tensor if dim is None else tensor.chunk(self.size, dim)[self.rank]

    def tokens(self, vocab_size: int) -> range:
        """The tokens whose logits this rank computes; the last rank may have fewer. Raises UserError for none."""
        width = self._width(vocab_size)
        if width * (self.size - 1) >= vocab_size:
            raise UserError(f"tensor_parallel {self.size} is too many for a vocabulary of {vocab_size}")
        return range(width * self.rank, min(width * (self.rank + 1), vocab_size))

    def _width(self, vocab_size: int) -> int:
        return -(-vocab_size // (self.size * _VOCAB_MULTIPLE)) * _VOCAB_MULTIPLE if self.size > 1 else vocab_size

    # -- what they exchange: each call is made by all of them ------------------------------

    def add(self, x: torch.Tensor) -> None:
        """Replaces x by its sum over the ranks."""
        if self.size > 1:
            dist.all_reduce(x)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(ranks, *x.shape): x of every rank."""
        out = x.new_empty(self.size, *x.shape)
        dist.all_gather(list(out.unbind()), x.contiguous())
        return out

    def least(self, num: int) -> int:
        """The smallest of the numbers that the ranks give."""
        return min(self._all(num)) if self.size > 1 else num

    def of_first(self, value: Value) -> Value:
        """What the first rank gives."""
        return self._all(value)[0] if self.size > 1 else value

    def _all(self, value: Value) -> list[Value]:
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    # -- the vocabulary ---------------------------------------------------------------------

    def all_logits(self, logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """(rows, vocabulary): the logits of all ranks; `logits` are those of `tokens`."""
        width = self._width(vocab_size)
        parts = self.gather(functional.pad(logits, (0, width - logits.shape[1])))
        return parts.movedim(0, 1).flatten(1)[:, :vocab_size].contiguous()

    def draw(
        self, logits: torch.Tensor, vocab_size: int, sampling: Sequence[torch.Tensor], impl: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sample` of all ranks' logits, without filters: every rank gets the tokens that one process would draw.

        The noise is a function of key, position and token, so that the best of all tokens is the best of the ranks'
        best ones. Each rank tells its own, with its logit and its logarithm of the sum of exponentials: 24 bytes a row.
        """
        tokens = self.tokens(vocab_size)
        own = functional.pad(logits, (tokens.start, vocab_size - tokens.stop), value=-torch.inf)
        drawn, logprobs = sample(own, *sampling, impl=impl)
        scale = torch.where(sampling[2] == 0, 1.0, sampling[2]).double()
        # A part of the vocabulary may well be -Inf; any other part without a token makes an error of the row.
        is_empty = logits.amax(1) == -torch.inf
        places = drawn.clamp(min=tokens.start).long()
        best = _pick(own, places).masked_fill((drawn < 0) & ~is_empty, torch.nan).double()
        sums = (best / scale - logprobs).masked_fill(is_empty, -torch.inf)
        best, sums, places = self.gather(torch.stack([best, sums, places.double()])).unbind(1)
        finalists = torch.full_like(own, -torch.inf).scatter_(1, places.long().t(), best.float().t())
        drawn, _ = sample(finalists, *sampling, impl=impl)
        chosen = _pick(finalists, drawn.clamp(min=0).long()).masked_fill(drawn < 0, torch.nan)
        return drawn, (chosen / scale - sums.logsumexp(0)).float()


ALONE = Ranks()


def _pick(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(rows,): of each row of x the value in its column."""
    return x.gather(1, columns[:, None])[:, 0]


def join_ranks(num_ranks: int) -> Ranks:
    """The ranks of this process's group, which is made if there is none. Raises UserError unless they are `num_ranks`.

    On a GPU, tensors go by NCCL; on a CPU, and Python objects in any case, by gloo.
    """
    num_ranks = check_count("tensor_parallel", num_ranks)
    if num_ranks == 1:
        return ALONE
    found = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 0))
    if found != num_ranks:
        is_there = f"there are {found}" if found else "there is no process group"
        raise UserError(
            f"tensor_parallel {num_ranks} needs as many processes, started by torchrun --nproc-per-node {num_ranks}: "
            f"{is_there}"
        )
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(dist.get_rank(), num_ranks)
