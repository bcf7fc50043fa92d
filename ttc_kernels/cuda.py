"""The CUDA kernels' library, ttc_kernels/_cuda.so: loading it, and calling it with errors checked.

setup.py builds it where it finds nvcc. It links neither torch nor libcudart, so it loads on a machine without a GPU;
there a launch fails. Every function takes a device, a stream and a pointer to one struct, which the op's cuda.py
declares again field for field.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_cuda.so")  # where it is, if it was built
CUDA_OPS = ("tree_attention", "copy_blocks", "step_score", "sample_head", "sample")  # exported as ttc_<op>


MIN_CAPABILITY = (8, 0)  # of the oldest device that there is code for; newer ones than the last compile its PTX


@cache
def runs_on(device: torch.device) -> bool:
    """Whether the library was built and a GPU has what its kernels need."""
    return LIBRARY.exists() and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


class Library:
    """The functions of one build; `device_type` is where the tensors that it takes must lie.

    Raises RuntimeError for a library that cannot be loaded, or lacks a function, as an older one does.
    """

    def __init__(self, path: Path, device_type: str = "cuda"):
        self.path, self.device_type = path, device_type
        self._functions = {}
        try:
            loaded = ctypes.CDLL(str(path))
            functions = [getattr(loaded, f"ttc_{op}") for op in CUDA_OPS]
        except (OSError, AttributeError) as error:
            raise RuntimeError(f"{path.name} is broken or of another version, build it again: {error}") from None
        for op, function in zip(CUDA_OPS, functions, strict=True):
            function.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
            function.restype = ctypes.c_char_p
            self._functions[op] = function

    def call(self, op: str, device: torch.device, shapes: Callable[[], str], args: ctypes.Structure) -> None:
        """Launches `op` on the current stream of the device.

        Raises RuntimeError with the op, `shapes()` and CUDA's name of the error where a launch fails.
        """
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        error = self._functions[op](device.index or 0, stream, ctypes.byref(args))
        if error:
            raise RuntimeError(f"{op}: {error.decode()} from CUDA for {shapes()}")

    def check_device(self, op: str, **tensors: torch.Tensor | None) -> torch.device:
        """The device that all tensors share (None is left out); ValueError unless it is of this library's kind."""
        devices = {name: x.device for name, x in tensors.items() if x is not None}
        first = next(iter(devices.values()))
        if first.type != self.device_type or any(device != first for device in devices.values()):
            shown = ", ".join(f"{name} on {device}" for name, device in devices.items())
            raise ValueError(f"{op}: the CUDA kernel takes tensors on one {self.device_type} device, got {shown}")
        return first


@cache
def library() -> Library:
    """The library that was built with this package. Raises RuntimeError where there is none.

    TTC_EMULATED_CUDA names one in its place whose kernels were compiled for a CPU, for a rehearsal without a GPU.
    """
    if emulated := os.environ.get("TTC_EMULATED_CUDA"):
        return Library(Path(emulated), "cpu")
    if not LIBRARY.exists():
        raise RuntimeError(f"ttc_kernels was built without CUDA: {LIBRARY.name} is missing (no nvcc, or TTC_CUDA=off)")
    return Library(LIBRARY)
