"""Inputs for sample's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    num_rows: int
    vocab: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    spread: float = 3.0  # standard deviation of the logits

    @property
    def flops(self) -> int:
        """The log-probability's exponential and the noise's two logarithms counted as one each."""
        return self.num_rows * self.vocab * 6

    @property
    def num_bytes(self) -> int:
        return self.num_rows * (self.vocab * 4 + 40)

    def inputs(self, seed: int = 0) -> dict:
        """Keyword arguments of sample."""
        generator = torch.Generator().manual_seed(seed)
        rows = self.num_rows
        return {
            "logits": self.spread * torch.randn(rows, self.vocab, generator=generator),
            "keys": torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
            "positions": torch.randint(4096, (rows,), generator=generator, dtype=torch.int32),
            "temperature": torch.full((rows,), self.temperature),
            "top_k": torch.full((rows,), self.top_k, dtype=torch.int32),
            "top_p": torch.full((rows,), self.top_p),
            "min_p": torch.full((rows,), self.min_p),
        }


FILTERS = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
)


def tiny() -> list[Case]:
    return [Case(7, vocab, **chosen) for vocab in (1, 3, 25, 32, 33, 64, 131, 1000) for chosen in FILTERS]


def full() -> list[Case]:
    """The home model's 25 tokens at decode, and a 151,936-token vocabulary."""
    return [Case(256, 25), Case(1024, 25)] + [Case(16, 151_936, **chosen) for chosen in FILTERS]
