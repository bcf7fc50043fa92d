"""The device of a model, and the implementation of its ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.errors import UserError


@dataclass(frozen=True)
class Placement:
    """A device, and the `impl` that every op on it is called with (see ttc_kernels/choice.py).

    A CPU with "auto" is native: packed trunk, native decode loop, native kernels. Every other placement takes the
    code path of a GPU, which other implementations of the ops can also run on CPU tensors.
    """

    device: torch.device
    impl: str = "auto"

    @property
    def is_native(self) -> bool:
        """Whether the ops run on the C++ kernels of a CPU."""
        return self.device.type == "cpu" and self.impl == "auto"


CPU = Placement(torch.device("cpu"))


def resolve_device(name: str) -> Placement:
    """The placement for "cpu" or "cuda" (the current GPU). Raises UserError for another name, or without a GPU."""
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise UserError(f"device must be 'cpu' or 'cuda', got {name!r}")
    if not torch.cuda.is_available():
        raise UserError(f"device 'cuda' was asked for, but torch {torch.__version__} sees no GPU")
    return Placement(torch.device("cuda", torch.cuda.current_device()))
