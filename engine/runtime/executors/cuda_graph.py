"""A CUDA graph of a call: the host makes its launches, some 180 for a decode step of 28 layers, only once."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Graph:
    """Captures `call` on the current stream, which must not be the default one; `replay` runs it there again.

    The call must have run before, so that nothing is compiled or allocated during the capture. It may read and write
    only memory that keeps its address, and must not wait for the device.
    """

    def __init__(self, call: Callable[[], None]):
        stream = torch.cuda.current_stream()
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            call()

    def replay(self) -> None:
        self._graph.replay()
