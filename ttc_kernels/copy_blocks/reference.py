"""The definition of copy_blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def copy_blocks(caches: Sequence[torch.Tensor], pairs: torch.Tensor) -> None:
    source, destination = pairs.long().unbind(1)
    for cache in caches:  # (num_layers, num_blocks, ...)
        cache[:, destination] = cache[:, source]
