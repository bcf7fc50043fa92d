"""Copies between the host and a device: many small arrays at once, and results that are waited for when read."""

from __future__ import annotations

import numpy as np
import torch

_ALIGN = 16  # bytes, of every array in a copy
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}


class Transfers:
    """Copies to and from one device, on its current stream. On a GPU from pinned memory, so the host never waits."""

    def __init__(self, device: torch.device):
        self.device = device
        self.is_gpu = device.type == "cuda"

    def put(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """The arrays on the device, in one copy; they may change afterwards."""
        ends = np.cumsum([-(-array.nbytes // _ALIGN) * _ALIGN for array in arrays]).tolist()
        host = self.staged(ends[-1])
        memory, starts = host.numpy(), [0, *ends[:-1]]
        for array, start in zip(arrays, starts, strict=True):
            memory[start : start + array.nbytes].view(array.dtype)[:] = array
        there = host.to(self.device, non_blocking=True) if self.is_gpu else host
        return [
            there[start : start + array.nbytes].view(_TYPES[array.dtype])
            for array, start in zip(arrays, starts, strict=True)
        ]

    def staged(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 in host memory, pinned on a GPU; torch keeps it until every copy from it has run."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.is_gpu)

    def fetch(self, *tensors: torch.Tensor) -> Fetch:
        """Starts to copy tensors to the host."""
        if not self.is_gpu:
            return Fetch([tensor.clone() for tensor in tensors], None)
        hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return Fetch(hosts, event)


class Fetch:
    """Tensors on their way to the host."""

    def __init__(self, hosts: list[torch.Tensor], event: torch.cuda.Event | None):
        self._hosts, self._event = hosts, event

    @property
    def is_there(self) -> bool:
        return self._event is None or self._event.query()

    def arrays(self) -> list[np.ndarray]:
        """The tensors as arrays; waits until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return [host.numpy() for host in self._hosts]
