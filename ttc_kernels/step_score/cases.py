"""Inputs for step_score's tests (`tiny`) and benchmarks (`full`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttc_kernels.step_score.reference import LabelHead


@dataclass(frozen=True)
class Case:
    num_rows: int  # of hidden
    num_scores: int
    size: int
    num_labels: int
    dtype: torch.dtype
    has_bias: bool
    num_slots: int

    @property
    def flops(self) -> int:
        return 2 * self.num_scores * self.size * self.num_labels

    @property
    def num_bytes(self) -> int:
        """The scored rows and the head, read once, and the folded state both ways."""
        head = (self.num_scores + self.num_labels) * self.size * self.dtype.itemsize
        return head + self.num_scores * (4 + 2 * 16)

    def inputs(self, seed: int = 0) -> dict:
        """Keyword arguments of step_score, with an empty state."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        def integers(limit: int) -> torch.Tensor:
            return torch.randint(limit, (self.num_scores,), generator=generator, dtype=torch.int32)

        return {
            "hidden": normal(self.num_rows, self.size).to(self.dtype),
            "rows": integers(self.num_rows),
            "head": LabelHead(
                weight=(normal(self.num_labels, self.size) / self.size**0.5).to(self.dtype),
                bias=normal(self.num_labels).to(self.dtype) if self.has_bias else None,
                good_index=self.num_labels - 1,
            ),
            "state": torch.zeros(self.num_slots, 4),
            "counts": torch.zeros(self.num_slots, dtype=torch.int32),
            "slot": integers(self.num_slots),
        }


def tiny() -> list[Case]:
    sizes = [(1, 1, 3, 1), (9, 5, 16, 2), (7, 12, 33, 2), (20, 30, 96, 3), (5, 6, 257, 1)]
    dtypes = (torch.float32, torch.bfloat16)
    return [Case(*size, dtype, has_bias, 4) for size in sizes for dtype in dtypes for has_bias in (False, True)]


def full() -> list[Case]:
    """The home PRM's 64 beams, and a 1.5B one's."""
    return [Case(1024, 64, 96, 2, torch.float32, True, 64), Case(4096, 64, 1536, 2, torch.bfloat16, True, 64)]
