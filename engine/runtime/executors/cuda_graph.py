"""A CUDA graph of a call: some 250 launches a step that the host makes once."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Graph:
    """Captures `call` on the current stream, which is not the default one; `replay` runs it there again.

    The call has run before, so that nothing is compiled or sized within the capture; it reads and writes memory that
    stays where it is, and waits for nothing.
    """

    def __init__(self, call: Callable[[], None]):
        stream = torch.cuda.current_stream()
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            call()

    def replay(self) -> None:
        self._graph.replay()
