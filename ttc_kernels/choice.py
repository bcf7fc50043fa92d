"""Who computes an op: the one table behind `impl="auto"`, and Triton, imported only when asked for.

Explicit requests run or raise. "cuda" is hand-written and there for `CUDA_OPS` alone; `sample_head` has no filters in
CUDA, so where top-k, top-p or min-p is set "auto" goes by logits and `sample`, and a request for "cuda" raises.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

import torch

from ttc_kernels.cuda import LIBRARY

IMPLEMENTATIONS = ("native", "triton", "cuda", "reference")
CUDA_OPS = ("tree_attention", "copy_blocks", "step_score", "sample_head")
# What the reference takes where it is held to the kernels' types.
DTYPES = {
    "native": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "reference": (torch.float32, torch.bfloat16),
}
_HALF = (torch.bfloat16, torch.float16)
UNMEASURED = "unmeasured default: no GPU at hand"


@dataclass(frozen=True)
class Row:
    device: str  # torch's device type
    op: str
    implementation: str
    set_by: str  # the run that measured it: commit, hardware, figures
    # Of the rows that apply the one with the highest count decides, of equals the later; counted in the op's first
    # tensor, as the other conditions are.
    min_rows: int = 0
    dtypes: tuple[torch.dtype, ...] = ()  # () takes any
    sizes: tuple[int, ...] = ()  # of the last dimension; () takes any
    multiple: int = 1  # of which the last dimension must be one

    def applies(self, x: torch.Tensor) -> bool:
        """Whether the row speaks for a tensor on its device; one of CUDA's only where the library was built, one of
        flash-attn's only where that can be imported."""
        return (
            self.min_rows <= len(x)
            and (not self.dtypes or x.dtype in self.dtypes)
            and (not self.sizes or x.shape[-1] in self.sizes)
            and x.shape[-1] % self.multiple == 0
            and (self.implementation != "cuda" or LIBRARY.exists())
            and (self.implementation != "flash_attn" or _has_flash_attn())
        )


@functools.cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


TABLE = (
    Row("cpu", "tree_attention", "native", "the only one made for a CPU"),
    Row("cpu", "rope_store_kv", "native", "the only one made for a CPU"),
    Row("cpu", "copy_blocks", "native", "the only one made for a CPU"),
    Row("cpu", "rms_norm", "native", "the only one made for a CPU"),
    Row("cpu", "swiglu", "native", "the only one made for a CPU"),
    Row("cpu", "sample", "native", "the only one made for a CPU"),
    Row("cpu", "step_score", "native", "the only one made for a CPU"),
    Row("cpu", "sample_head", "native", "the only one made for a CPU"),
    Row("cuda", "tree_attention", "triton", UNMEASURED),
    Row("cuda", "tree_attention", "cuda", UNMEASURED, dtypes=_HALF, sizes=(64, 128)),
    Row("cuda", "rope_store_kv", "triton", UNMEASURED),
    Row("cuda", "copy_blocks", "triton", UNMEASURED),
    Row("cuda", "copy_blocks", "cuda", UNMEASURED),
    Row("cuda", "rms_norm", "triton", UNMEASURED),
    Row("cuda", "swiglu", "triton", UNMEASURED),
    Row("cuda", "sample", "triton", UNMEASURED),
    Row("cuda", "step_score", "triton", UNMEASURED),
    Row("cuda", "step_score", "cuda", UNMEASURED),
    Row("cuda", "sample_head", "triton", UNMEASURED),
    Row("cuda", "sample_head", "cuda", UNMEASURED, dtypes=_HALF, multiple=8),
)

# Who has the attention of many new tokens of one branch (tree_attention/prefill.py), of rows that apply the last; of a
# run that has none, and on other devices, it is tree_attention's own.
PREFILL = (
    Row("cuda", "prefill", "sdpa", UNMEASURED, min_rows=256),
    Row("cuda", "prefill", "flash_attn", UNMEASURED, min_rows=256, dtypes=_HALF),
)


def chooser(op: str, table: Iterable[Row] = TABLE) -> Callable[[str, torch.Tensor], str]:
    """The function (impl, x) -> implementation of an op; a call takes 0.1 µs, as ops are called per layer and token.

    x is the op's first tensor. The function raises ValueError for an `impl` that is neither "auto" nor of
    IMPLEMENTATIONS, for "cuda" where the op has no such kernel, and where "auto" meets a device that the table does
    not know.
    """
    rows: dict[str, list[Row]] = {}
    taken = tuple(impl for impl in IMPLEMENTATIONS if impl != "cuda" or op in CUDA_OPS)
    names = f"{', '.join(map(repr, ('auto', *taken[:-1])))} or {taken[-1]!r}"
    for row in sorted(table, key=lambda row: row.min_rows):
        if row.op == op:
            rows.setdefault(row.device, []).append(row)
    on_cpu = rows.get("cpu", [])
    always_on_cpu = on_cpu[0].implementation if len(on_cpu) == 1 else None

    def choose(impl: str, x: torch.Tensor) -> str:
        if impl == "auto":
            return always_on_cpu if always_on_cpu and x.is_cpu else look_up(x)
        if impl in taken:
            return impl
        raise ValueError(f"{op}: impl must be {names}, got {impl!r}")

    def look_up(x: torch.Tensor) -> str:
        if x.device.type not in rows:
            raise ValueError(f"{op}: impl 'auto' knows a CPU and CUDA, got a tensor on {x.device}")
        return [row for row in rows[x.device.type] if row.applies(x)][-1].implementation

    return choose


def load_triton(op: str, x: torch.Tensor) -> ModuleType:
    """The op's Triton kernels for a tensor on x's device; ValueError where they cannot run."""
    module, is_interpreted = _import_triton(op)
    if not is_interpreted and (not x.is_cuda or x.device.index != torch.cuda.current_device()):
        raise ValueError(
            f"{op}: impl 'triton' takes tensors on the current CUDA device (on a CPU it needs TRITON_INTERPRET=1 "
            f"before triton is imported), got a tensor on {x.device}"
        )
    return module


@functools.cache
def _import_triton(op: str) -> tuple[ModuleType, bool]:
    """(ttc_kernels.<op>.triton, whether Triton's interpreter runs it)."""
    try:
        import triton
    except ImportError as error:
        raise ValueError(f"{op}: impl 'triton' needs the package triton, got {error}") from error
    # Triton's own functions show what stood in the environment when it was imported.
    is_interpreted = not isinstance(triton.language.sum, triton.JITFunction)
    return importlib.import_module(f"ttc_kernels.{op}.triton"), is_interpreted
