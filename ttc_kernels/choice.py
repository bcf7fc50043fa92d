"""Which implementation computes an op: the one table behind `impl="auto"`, and the import of Triton on demand.

An explicit request runs or raises. Only `CUDA_OPS` have hand-written CUDA kernels; `sample_head`'s has no filters, so
where top-k, top-p or min-p is set "auto" goes by logits and `sample`, and a request for "cuda" raises.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

import torch

from ttc_kernels.cuda import CUDA_OPS, runs_on

IMPLEMENTATIONS = ("native", "triton", "cuda", "reference")
# Types that an implementation takes in ops that hold the reference to the kernels' types.
DTYPES = {
    "native": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "reference": (torch.float32, torch.bfloat16),
}
NOT_NATIVE = ("fused_linear",)  # ops without a kernel for a CPU
_HALF = (torch.bfloat16, torch.float16)
UNMEASURED = "unmeasured default: no GPU at hand"


@dataclass(frozen=True)
class Choice:
    """One row of the table: an op on a device goes to an implementation where the conditions hold.

    The conditions are on the op's first tensor. Of the choices that apply the one with the highest `min_rows` wins, of
    equals the later.
    """

    device: str  # torch's device type
    op: str
    implementation: str
    set_by: str  # the run that measured it: commit, hardware, figures
    min_rows: int = 0
    dtypes: tuple[torch.dtype, ...] = ()  # () allows any
    sizes: tuple[int, ...] = ()  # sizes that the last dimension may have; () allows any
    multiple: int = 1  # which divides the last dimension
    min_size: int = 0  # of the last dimension
    max_size: int | None = None  # of it; None allows any

    def applies(self, x: torch.Tensor) -> bool:
        """Whether the conditions hold for a tensor on the choice's device, which the implementation can run on."""
        return (
            self.min_rows <= len(x)
            and (not self.dtypes or x.dtype in self.dtypes)
            and (not self.sizes or x.shape[-1] in self.sizes)
            and x.shape[-1] % self.multiple == 0
            and x.shape[-1] >= self.min_size
            and (self.max_size is None or x.shape[-1] <= self.max_size)
            and (self.implementation != "cuda" or runs_on(x.device))
            and (self.implementation != "flash_attn" or _has_flash_attn())
        )


@functools.cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


TABLE = (
    Choice("cpu", "tree_attention", "native", "the only one made for a CPU"),
    Choice("cpu", "rope_store_kv", "native", "the only one made for a CPU"),
    Choice("cpu", "copy_blocks", "native", "the only one made for a CPU"),
    Choice("cpu", "rms_norm", "native", "the only one made for a CPU"),
    Choice("cpu", "swiglu", "native", "the only one made for a CPU"),
    Choice("cpu", "sample", "native", "the only one made for a CPU"),
    Choice("cpu", "step_score", "native", "the only one made for a CPU"),
    Choice("cpu", "sample_head", "native", "the only one made for a CPU"),
    Choice("cpu", "fused_linear", "reference", "the only one made for a CPU"),
    Choice("cuda", "tree_attention", "triton", UNMEASURED),
    Choice("cuda", "tree_attention", "cuda", UNMEASURED, dtypes=_HALF, sizes=(64, 128)),
    Choice("cuda", "rope_store_kv", "triton", UNMEASURED),
    Choice("cuda", "copy_blocks", "triton", UNMEASURED),
    Choice("cuda", "copy_blocks", "cuda", UNMEASURED),
    Choice("cuda", "rms_norm", "triton", UNMEASURED),
    Choice("cuda", "swiglu", "triton", UNMEASURED),
    Choice("cuda", "fused_linear", "triton", UNMEASURED),
    Choice("cuda", "sample", "triton", UNMEASURED),
    # Six launches, in place of a program a row.
    Choice("cuda", "sample", "cuda", UNMEASURED, min_size=4096, max_size=(1 << 20) - 1),
    Choice("cuda", "step_score", "triton", UNMEASURED),
    Choice("cuda", "step_score", "cuda", UNMEASURED),
    Choice("cuda", "sample_head", "triton", UNMEASURED),
    Choice("cuda", "sample_head", "cuda", UNMEASURED, dtypes=_HALF, multiple=8),
)

# Which implementation computes the attention of many new tokens of one branch (tree_attention/prefill.py): the last
# choice that applies. Where none does, and on other devices, it is tree_attention's own kernel.
PREFILL = (
    Choice("cuda", "prefill", "sdpa", UNMEASURED, min_rows=256),
    Choice("cuda", "prefill", "flash_attn", UNMEASURED, min_rows=256, dtypes=_HALF),
)

# Who computes the matrix products of a layer: torch, between launches of rms_norm and swiglu, or fused_linear. Beyond
# some rows weights are no longer what takes the time, and torch's tiles are better. float16 might overflow in
# fused_linear, float32 is summed there without tensor cores.
PRODUCTS = (
    Choice("cpu", "products", "torch", "fused_linear has no kernel for a CPU"),
    Choice("cuda", "products", "torch", UNMEASURED),
    Choice("cuda", "products", "fused_linear", UNMEASURED, dtypes=(torch.bfloat16,)),
    Choice("cuda", "products", "torch", UNMEASURED, min_rows=65),
)


def chooser(op: str, table: Iterable[Choice] = TABLE) -> Callable[[str, torch.Tensor], str]:
    """The function (impl, x) -> implementation of an op, where x is its first tensor.

    A call takes 0.1 µs, as ops are called per layer and token. It raises ValueError for an `impl` that is neither
    "auto" nor one of IMPLEMENTATIONS, for "cuda" and "native" where the op has no such kernel, and where "auto" meets a
    device that the table does not know.
    """
    choices: dict[str, list[Choice]] = {}
    lacks = {"cuda": op not in CUDA_OPS, "native": op in NOT_NATIVE}
    taken = tuple(impl for impl in IMPLEMENTATIONS if not lacks.get(impl))
    names = f"{', '.join(map(repr, ('auto', *taken[:-1])))} or {taken[-1]!r}"
    for choice in sorted(table, key=lambda choice: choice.min_rows):
        if choice.op == op:
            choices.setdefault(choice.device, []).append(choice)
    on_cpu = choices.get("cpu", [])
    always_on_cpu = on_cpu[0].implementation if len(on_cpu) == 1 else None

    def choose(impl: str, x: torch.Tensor) -> str:
        if impl == "auto":
            return always_on_cpu if always_on_cpu and x.is_cpu else look_up(x)
        if impl in taken:
            return impl
        raise ValueError(f"{op}: impl must be {names}, got {impl!r}")

    def look_up(x: torch.Tensor) -> str:
        if x.device.type not in choices:
            raise ValueError(f"{op}: impl 'auto' knows a CPU and CUDA, got a tensor on {x.device}")
        return [choice for choice in choices[x.device.type] if choice.applies(x)][-1].implementation

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
    # Whether Triton's own functions are compiled shows how TRITON_INTERPRET was set when it was imported.
    is_interpreted = not isinstance(triton.language.sum, triton.JITFunction)
    return importlib.import_module(f"ttc_kernels.{op}.triton"), is_interpreted
