"""Inputs for the tests (`tiny`) and benchmarks (`full`) of sample, and for those of sample_head (`head_...`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttc_kernels.sample.reference import RowSampling


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
        logits = self.spread * torch.randn(self.num_rows, self.vocab, generator=generator)
        return {"logits": logits} | _sampling(self, generator)._asdict()


@dataclass(frozen=True)
class HeadCase:
    num_rows: int
    size: int
    vocab: int
    dtype: torch.dtype = torch.float32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def flops(self) -> int:
        return self.num_rows * self.vocab * (2 * self.size + 6)

    @property
    def num_bytes(self) -> int:
        """The least that must be read and written; logits are not counted, as they need not be stored."""
        return (self.num_rows + self.vocab) * self.size * self.dtype.itemsize + self.num_rows * 40

    def inputs(self, seed: int = 0) -> dict:
        """Keyword arguments of sample_head; logits have a standard deviation of 3."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(self.vocab, self.size, generator=generator).mul_(3 / self.size**0.5)
        return {
            "hidden": torch.randn(self.num_rows, self.size, generator=generator).to(self.dtype),
            "weight": weight.to(self.dtype),
            "sampling": _sampling(self, generator),
            "is_filtered": self.top_k > 0 or self.top_p < 1 or self.min_p > 0,
        }


def _sampling(case: Case | HeadCase, generator: torch.Generator) -> RowSampling:
    rows = case.num_rows
    return RowSampling(
        keys=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        positions=torch.randint(4096, (rows,), generator=generator, dtype=torch.int32),
        temperature=torch.full((rows,), case.temperature),
        top_k=torch.full((rows,), case.top_k, dtype=torch.int32),
        top_p=torch.full((rows,), case.top_p),
        min_p=torch.full((rows,), case.min_p),
    )


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


def head_tiny() -> list[HeadCase]:
    return [HeadCase(5, 24, vocab, temperature=temperature) for vocab in (3, 131, 300) for temperature in (1.0, 0.0)]


def head_full(device: str) -> list[HeadCase]:
    """The home model's head at decode, and those of Qwen2.5-0.5B (on a CPU), -1.5B and Llama-3.2-1B (on a GPU)."""
    if device == "cpu":
        home = [HeadCase(rows, 96, 25) for rows in (256, 1024)]
        return home + [HeadCase(16, 896, 151_936, dtype) for dtype in (torch.float32, torch.bfloat16)]
    shapes = [(1536, 151_936), (2048, 128_256)]
    return [HeadCase(rows, *shape, torch.bfloat16) for shape in shapes for rows in (1, 16, 64, 256)]
