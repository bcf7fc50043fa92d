"""Where a model lives, and who computes its ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.errors import UserError


@dataclass(frozen=True)
class Placement:
    """A device, and the `impl` of every op on it (see ttc_kernels/choice.py).

    With "auto" a CPU has the packed trunk, the native decode loop and the native kernels; everything else is the path
    of a GPU, which other implementations can drive on a CPU's tensors too.
    """

    device: torch.device
    impl: str = "auto"

    @property
    def is_native(self) -> bool:
        return self.device.type == "cpu" and self.impl == "auto"


CPU = Placement(torch.device("cpu"))


def resolve_device(name: str) -> Placement:
    """The placement of "cpu" or "cuda", the current GPU. Raises UserError for another name, or without a GPU."""
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise UserError(f"device must be 'cpu' or 'cuda', got {name!r}")
    if not torch.cuda.is_available():
        raise UserError(f"device 'cuda' was asked for, but torch {torch.__version__} sees no GPU")
    return Placement(torch.device("cuda", torch.cuda.current_device()))
