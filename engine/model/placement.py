"""The device of a model, and the implementation of its ops."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from engine.errors import UserError
from engine.model.ranks import ALONE, Ranks, join_ranks


@dataclass(frozen=True)
class Placement:
    """A device, the `impl` that every op on it is called with (see ttc_kernels/choice.py), and the ranks of a model.

    A CPU with "auto" is native: packed trunk, native decode loop, native kernels. Every other placement, and one of
    several ranks, takes the code path of a GPU, which other implementations of the ops can also run on CPU tensors.
    """

    device: torch.device
    impl: str = "auto"
    ranks: Ranks = ALONE
    products: str = "auto"
    """Who computes the matrix products of layers: "torch", "fused_linear", or "auto", which is by the rows on a GPU."""

    def __post_init__(self):
        """Raises UserError for products that there are not, and for fused ones of several ranks."""
        if self.products not in ("auto", "torch", "fused_linear"):
            raise UserError(f"products must be auto, torch or fused_linear, got {self.products!r}")
        if self.products == "fused_linear" and self.ranks.size > 1:
            raise UserError(f"products 'fused_linear' are of one rank alone, got {self.ranks.size} ranks")

    @property
    def is_native(self) -> bool:
        """Whether the ops run on the C++ kernels of a CPU."""
        return self.device.type == "cpu" and self.impl == "auto" and self.ranks.size == 1


CPU = Placement(torch.device("cpu"))


def resolve_device(name: str, tensor_parallel: int = 1) -> Placement:
    """The placement for "cpu", "cuda" (the current GPU) or "cuda:1" (the second one).

    Of several ranks each has a GPU of its own, by its number on its machine. Raises UserError for another name, without
    the GPU, and where the ranks are not there.
    """
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not index.isdecimal())):
        raise UserError(f"device must be 'cpu', 'cuda' or a GPU by its number, as 'cuda:1', got {name!r}")
    if colon and tensor_parallel != 1:
        raise UserError(f"with tensor_parallel {tensor_parallel} each rank has a GPU of its own, got device {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} was asked for, but torch {torch.__version__} sees no GPU")
    ranks = join_ranks(tensor_parallel)
    if kind == "cpu":
        return Placement(torch.device("cpu"), ranks=ranks)
    number = int(index) if colon else torch.cuda.current_device()
    if ranks.size > 1:
        number = int(os.environ.get("LOCAL_RANK", ranks.rank))
    if number >= torch.cuda.device_count():
        raise UserError(f"GPU {number} was asked for, but torch sees {torch.cuda.device_count()}, counted from 0")
    if ranks.size > 1:
        torch.cuda.set_device(number)  # before the first tensor is exchanged
    return Placement(torch.device("cuda", number), ranks=ranks)
