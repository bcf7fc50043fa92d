"""Reads tensors of safetensors files one at a time, on access, directly into their final memory.

Files are read rather than memory-mapped: this is faster, without page faults, and a file that changes later does not
change a loaded model.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import UserError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 16 << 20  # those of the largest models have 1 or 2 MiB
CHUNK_BYTES = 256 << 10  # of a file, converted while still in the CPU's cache
LONE_ELEMENTS = 31 << 10  # few enough that torch converts them on one thread
RUN_BYTES = 1 << 20  # of the rows that `TensorFiles.runs` yields at once
SHARED_BYTES = 4 << 20  # tensors of at least this size are read by several threads


@dataclass(frozen=True)
class Place:
    """Where a tensor is stored, and in which form."""

    path: Path
    offset: int  # bytes from the file's start
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFiles(Mapping[str, torch.Tensor]):
    """The tensors of some safetensors files by name, in `dtype` and on `device`.

    A tensor that is still referenced elsewhere is not read again. Raises UserError for a damaged file, a stored
    dtype other than float32, float16 and bfloat16, and a tensor that is in two files.
    """

    def __init__(self, paths: Sequence[Path], dtype: torch.dtype, device: torch.device | str = "cpu"):
        self.dtype, self.device, self.folder = dtype, device, paths[0].parent
        # Conversion buffers, one per thread, allocated once so that the heap does not fragment.
        self._chunks = [torch.empty(CHUNK_BYTES, dtype=torch.uint8) for _ in range(torch.get_num_threads())]
        self._places: dict[str, Place] = {}
        self._loaded: WeakValueDictionary[str, torch.Tensor] = WeakValueDictionary()
        for path in paths:
            for name, place in _read_header(path).items():
                if name in self._places:
                    raise UserError(f"tensor {name!r} is in both {self._places[name].path} and {path}")
                self._places[name] = place

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._loaded.get(name)
        if tensor is None:
            tensor = torch.empty(self._places[name].shape, dtype=self.dtype, device=self.device)
            self.fill(name, tensor)
            self._loaded[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def file(self, name: str) -> Path:
        return self._places[name].path

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors in `dtype`."""
        return sum(math.prod(place.shape) for place in self._places.values()) * self.dtype.itemsize

    def fill(self, name: str, out: torch.Tensor) -> None:
        """Reads a tensor into `out`, which is contiguous, of the tensor's shape and any floating type."""
        place = self._places[name]
        assert tuple(out.shape) == place.shape, (name, out.shape, place.shape)
        assert out.is_contiguous(), (name, out.stride())
        if not out.is_cpu:
            read = torch.empty(out.shape, dtype=out.dtype)
            self.fill(name, read)
            out.copy_(read)
            return
        num_threads = len(self._chunks) if out.nbytes >= SHARED_BYTES else 1
        parts = out.view(-1).tensor_split(num_threads)
        starts = itertools.accumulate((len(part) for part in parts), initial=0)
        jobs = zip(itertools.repeat(place), parts, starts, self._chunks, strict=False)
        try:
            if num_threads == 1:
                _read_part(*next(jobs))
            else:  # not torch's threads, which would wait for one another after every chunk
                with ThreadPoolExecutor(num_threads) as pool:
                    list(pool.map(lambda job: _read_part(*job), jobs))
        except OSError as error:
            raise UserError(f"{place.path} cannot be read: {error}") from None

    def runs(self, name: str) -> Iterator[torch.Tensor]:
        """Yields a tensor's rows in order, several at a time, in a buffer that the next ones overwrite."""
        loaded, place = self._loaded.get(name), self._places[name]
        if loaded is not None:
            yield loaded
            return
        num_rows, *rest = place.shape
        width = math.prod(rest)
        step = max(1, RUN_BYTES // (width * self.dtype.itemsize))
        buffer = torch.empty(min(step, num_rows), *rest, dtype=self.dtype)
        for first in range(0, num_rows, step):
            rows = buffer[: num_rows - first]
            try:
                _read_part(place, rows.view(-1), first * width, self._chunks[0])
            except OSError as error:
                raise UserError(f"{place.path} cannot be read: {error}") from None
            yield rows

    def is_equal(self, first: str, second: str) -> bool:
        """Whether the stored forms of two tensors are equal, bit for bit."""
        places = [self._places[name] for name in (first, second)]
        if (places[0].shape, places[0].dtype) != (places[1].shape, places[1].dtype):
            return False
        left = math.prod(places[0].shape) * places[0].dtype.itemsize
        with open(places[0].path, "rb") as a, open(places[1].path, "rb") as b:
            a.seek(places[0].offset)
            b.seek(places[1].offset)
            while left > 0:
                num = min(left, CHUNK_BYTES)
                if a.read(num) != b.read(num):
                    return False
                left -= num
        return True


def shape_of(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    """A tensor's shape, without reading the tensor. Raises UserError if there is none of this name."""
    if name not in tensors:
        raise UserError(f"{origin(tensors)}the checkpoint lacks tensor {name!r}")
    return tensors.shape(name) if isinstance(tensors, TensorFiles) else tuple(tensors[name].shape)


def check_shape(tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError for a tensor that is missing, or of another shape than the configuration says."""
    found = shape_of(tensors, name)
    if found != shape:
        raise UserError(f"{origin(tensors)}tensor {name!r} has shape {found}, the config says {shape}")


def origin(tensors: Mapping[str, torch.Tensor]) -> str:
    """The prefix of error messages: the folder of tensors in files, empty for those in memory."""
    return f"{tensors.folder}: " if isinstance(tensors, TensorFiles) else ""


def take(tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor by name. Raises UserError if it is missing or its shape is not `shape`."""
    check_shape(tensors, name, shape)
    return tensors[name]


def fill(tensors: Mapping[str, torch.Tensor], name: str, out: torch.Tensor) -> None:
    """Copies a tensor into `out`, from its file without a second copy in memory. Raises UserError as `take`."""
    check_shape(tensors, name, tuple(out.shape))
    if isinstance(tensors, TensorFiles):
        tensors.fill(name, out)
    else:
        out.copy_(tensors[name])


def runs(tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """A tensor's rows, several at a time: one in a file is never whole in memory. Raises UserError as `take`."""
    check_shape(tensors, name, shape)
    return tensors.runs(name) if isinstance(tensors, TensorFiles) else iter([tensors[name]])


def _read_part(place: Place, out: torch.Tensor, start: int, chunk: torch.Tensor) -> None:
    """Reads a tensor's elements from index `start` into `out`, one-dimensional; `chunk` is a conversion buffer."""
    with open(place.path, "rb", buffering=0) as file:
        file.seek(place.offset + start * place.dtype.itemsize)
        if out.dtype is place.dtype:
            _read_into(file, out)
            return
        for part in out.split(CHUNK_BYTES // place.dtype.itemsize):
            stored = chunk.view(place.dtype)[: len(part)]
            _read_into(file, stored)
            for to, of in zip(part.split(LONE_ELEMENTS), stored.split(LONE_ELEMENTS), strict=True):
                to.copy_(of)


def _read_into(file, part: torch.Tensor) -> None:
    """Fills a contiguous one-dimensional tensor with the file's next bytes."""
    memory = memoryview(part.view(torch.uint8).numpy())
    while len(memory):
        num = file.readinto(memory)
        if not num:
            raise OSError("it ends within its tensors")
        memory = memory[num:]


def _read_header(path: Path) -> dict[str, Place]:
    """The places of a file's tensors; safetensors checks types, sizes, gaps and overlaps."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            most = min(MAX_HEADER_BYTES, size - 8)
            if not 0 < length <= most:
                raise UserError(
                    f"{path} cannot be read as safetensors: a file of {size} bytes may have a header of up to "
                    f"{max(most, 0)}, it says {length}"
                )
            with safe_open(path, framework="pt"):
                pass
            header = json.loads(file.read(length), object_pairs_hook=_without_repetition)
    except (SafetensorError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from None
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: tensor {name!r} is of type {entry['dtype']}, only {', '.join(DTYPES)} are read "
                "(no quantized weights)"
            )
        offset = 8 + length + entry["data_offsets"][0]
        places[name] = Place(path, offset, tuple(entry["shape"]), DTYPES[entry["dtype"]])
    return places


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Raises SafetensorError for a name that stands twice, of which readers take one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise SafetensorError(f"the name {twice[:80]!r} stands twice in its header")
    return found
