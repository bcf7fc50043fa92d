"""Sampling on an NVIDIA GPU: fused with the LM head, logits never stored, or from logits, with filters."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.cuda import Library, library
from ttc_kernels.sample.reference import RowSampling

TOKENS_PER_TILE = 128  # tokens of the vocabulary that one block of threads takes
STEP_ENDS, TEXT_ENDS = 1, 2  # bits of a flag
WORK_BYTES = 49_224  # for each row: RowWork of csrc/sample/sample_filtered_gpu.h
MAX_VOCAB = (1 << 20) - 1  # of `sample`
NUM_BLOCKS, TOKENS_PER_PART = 264, 4096  # blocks that fill a GPU; what each takes of a row where rows are few, at least


class SampleHeadArgs(ctypes.Structure):
    """SampleHeadArgs of csrc/sample/sample.cu: addresses, and strides in elements."""

    _fields_ = (
        ("hidden", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("hidden_stride", ctypes.c_int64),
        ("weight_stride", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("num_tiles", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("temperature", ctypes.c_void_p),
        ("parts", ctypes.c_void_p),
        ("part_tokens", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        ("logprobs", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("rule", ctypes.c_void_p),
        ("is_eos", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("is_bf16", ctypes.c_int64),
    )


class FilteredSampleArgs(ctypes.Structure):
    """FilteredSampleArgs of csrc/sample/sample_filtered_gpu.h: addresses, and strides in elements."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("logits_stride", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("temperature", ctypes.c_void_p),
        ("top_k", ctypes.c_void_p),
        ("top_p", ctypes.c_void_p),
        ("min_p", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        ("logprobs", ctypes.c_void_p),
        ("num_parts", ctypes.c_int64),
        ("parts", ctypes.c_void_p),
        ("work", ctypes.c_void_p),
        ("work_bytes", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Stops:
    """Which tokens end a step or the text. The last column is that of the error token, -1."""

    ends: torch.Tensor  # (num_rules, vocab + 1) bool: after which tokens a step ends, under each rule
    rule: torch.Tensor  # (rows,) int32: the rule of each row
    is_eos: torch.Tensor  # (vocab + 1,) bool


def sample_head(
    hidden: torch.Tensor,  # (rows, size) float16 or bfloat16
    weight: torch.Tensor,  # (vocab, size): the LM head
    keys: torch.Tensor,  # (rows,) int64
    positions: torch.Tensor,  # (rows,) int32
    temperature: torch.Tensor,  # (rows,) float32 >= 0; 0 takes the argmax
    stops: Stops | None = None,
    *,
    lib: Library | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(tokens int32, logprobs float32, flags uint8), each (rows,): `reference.sample` without filters.

    The logits are hidden @ weight.T summed in float32. The draw is the reference's, from the same Philox4x32-10
    counters, but where two tokens' perturbed logits are equal up to rounding. Flags are sums of STEP_ENDS and
    TEXT_ENDS, or None without `stops`. Raises ValueError for arguments that the kernel does not support, RuntimeError
    where a launch fails.
    """
    lib = lib or library()
    draws = {"keys": keys, "positions": positions, "temperature": temperature}
    tables = {} if stops is None else {"ends": stops.ends, "rule": stops.rule, "is_eos": stops.is_eos}
    device = lib.check_device("sample_head", hidden=hidden, weight=weight, **draws, **tables)
    _check_product(hidden, weight)
    (num_rows, size), vocab = hidden.shape, len(weight)
    _check_rows(draws | tables, num_rows, vocab, device)
    num_tiles = -(-vocab // TOKENS_PER_TILE)
    parts = torch.empty(4, num_rows, num_tiles, dtype=torch.float32, device=device)
    part_tokens = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=device)
    tokens = torch.empty(num_rows, dtype=torch.int32, device=device)
    logprobs = torch.empty(num_rows, dtype=torch.float32, device=device)
    flags = None if stops is None else torch.empty(num_rows, dtype=torch.uint8, device=device)
    args = SampleHeadArgs(
        hidden=hidden.data_ptr(),
        weight=weight.data_ptr(),
        hidden_stride=hidden.stride(0),
        weight_stride=weight.stride(0),
        num_rows=num_rows,
        size=size,
        vocab=vocab,
        num_tiles=num_tiles,
        parts=parts.data_ptr(),
        part_tokens=part_tokens.data_ptr(),
        tokens=tokens.data_ptr(),
        logprobs=logprobs.data_ptr(),
        flags=None if flags is None else flags.data_ptr(),
        is_bf16=hidden.dtype is torch.bfloat16,
        **{name: x.data_ptr() for name, x in (draws | tables).items()},
    )
    lib.call("sample_head", device, lambda: f"hidden {describe(hidden)}, weight {describe(weight)}", args)
    return tokens, logprobs, flags


def sample(
    logits: torch.Tensor,  # (rows, vocab) float32, with adjacent elements
    sampling: RowSampling,  # contiguous
    *,
    num_parts: int | None = None,  # blocks for each row, which changes no bit; None: as many as fill a GPU
    lib: Library | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reference.sample` in six passes over the logits; (tokens, logprobs). A row with a wrong value gets -1 and NaN.

    Shapes and types are those that `api.sample` has checked. The mass of a token is rounded to 2^-44 of the highest.
    Raises ValueError for more than MAX_VOCAB tokens, RuntimeError where a launch fails.
    """
    lib = lib or library()
    device = lib.check_device("sample", logits=logits, **sampling._asdict())
    num_rows, vocab = logits.shape
    if vocab > MAX_VOCAB:
        raise ValueError(f"sample: the CUDA kernel takes up to {MAX_VOCAB} tokens, got logits {describe(logits)}")
    num_parts = num_parts or max(1, min(-(-NUM_BLOCKS // max(1, num_rows)), vocab // TOKENS_PER_PART))
    tokens = torch.empty(num_rows, dtype=torch.int32, device=device)
    logprobs = torch.empty(num_rows, dtype=torch.float32, device=device)
    parts = torch.empty(num_rows, 2, num_parts, dtype=torch.int64, device=device)
    work = torch.empty(num_rows, WORK_BYTES, dtype=torch.uint8, device=device)
    args = FilteredSampleArgs(
        logits=logits.data_ptr(),
        logits_stride=logits.stride(0),
        num_rows=num_rows,
        vocab=vocab,
        tokens=tokens.data_ptr(),
        logprobs=logprobs.data_ptr(),
        num_parts=num_parts,
        parts=parts.data_ptr(),
        work=work.data_ptr(),
        work_bytes=WORK_BYTES,
        **{name: x.data_ptr() for name, x in sampling._asdict().items()},
    )
    lib.call("sample", device, lambda: f"logits {describe(logits)}", args)
    return tokens, logprobs


def _check_rows(given: Mapping[str, torch.Tensor], num_rows: int, vocab: int, device: torch.device) -> None:
    shapes = {
        "keys": ((num_rows,), torch.int64),
        "positions": ((num_rows,), torch.int32),
        "temperature": ((num_rows,), torch.float32),
        "rule": ((num_rows,), torch.int32),
        "is_eos": ((vocab + 1,), torch.bool),
    }
    if "ends" in given:
        shapes["ends"] = ((len(given["ends"]), vocab + 1), torch.bool)
    for name, x in given.items():
        check_tensor("sample_head", name, x, *shapes[name], device)


def _check_product(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    is_right = (
        hidden.ndim == weight.ndim == 2
        and hidden.shape[1] == weight.shape[1]
        and hidden.shape[1] % 8 == 0
        and weight.numel() > 0
        and hidden.dtype in (torch.float16, torch.bfloat16)
        and weight.dtype is hidden.dtype
        and all(x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0 for x in (hidden, weight))
    )
    if not is_right:
        raise ValueError(
            "sample_head: the CUDA kernel takes hidden (rows, size) and weight (vocab > 0, size), float16 or "
            "bfloat16, size a positive multiple of 8, rows adjacent and aligned to 16 bytes, got hidden "
            f"{describe(hidden)}, weight {describe(weight)}"
        )
