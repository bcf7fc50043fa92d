"""Kernels that a decode step launches on a GPU, counted on a CPU: torch's by its dispatcher, Triton's by a stub that
runs none, CUDA's by their emulator."""

import ctypes

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from engine.model.heads import ScoreHead
from engine.model.unpacked import TorchDecoder
from engine.model.weights import LayerExtras, Trunk
from ttc_kernels import cuda
from ttc_kernels.decoder import cases
from ttc_kernels.step_score import cuda as score_cuda
from ttc_kernels.tree_attention import api as attention_api
from ttc_kernels.tree_attention import cuda as attention_cuda

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided")
# What layers of Llama need, and of Qwen2.5, whose bias the second launch adds.
LAYERS = {
    "fused_linear": [
        *("_fused_linear", "_rope_store_kv", "tree_attention", "_fused_linear"),
        *("_fused_linear", "_fused_linear"),
    ],
    "torch": [
        *("_rms_norm", "mm", "_rope_store_kv", "tree_attention", "mm"),
        *("_rms_norm", "mm", "_swiglu", "mm"),
    ],
}
QK_NORM = ["_rms_norm", "mul", "mul"]


class TorchKernels(TorchDispatchMode):
    """Notes every op of torch that is neither a view nor an allocation."""

    def __init__(self, launched: list[str]):
        super().__init__()
        self.launched = launched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATIONS:
            self.launched.append(name)
        return func(*args, **(kwargs or {}))


class CountedLibrary(cuda.Library):
    """Notes the launches of every call."""

    def __init__(self, library: cuda.Library, launched: list[str]):
        super().__init__(library.path, library.device_type)
        self.launched = launched
        self.num_launches = ctypes.CDLL(str(library.path)).ttc_test_num_launches
        self.num_launches.restype = ctypes.c_int64

    def call(self, op, device, shapes, args):
        before = self.num_launches()
        super().call(op, device, shapes, args)
        self.launched += [op] * (self.num_launches() - before)


@pytest.fixture
def launched(emulated, monkeypatch) -> list[str]:
    """The names of what is launched; attention is in CUDA, as it is on a GPU for this type and head size."""
    names: list[str] = []
    library = CountedLibrary(emulated, names)
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *args, **options: names.append(self.fn.__name__))
    monkeypatch.setattr(attention_api, "choose", lambda impl, x: "cuda")
    for module in (attention_cuda, score_cuda):
        monkeypatch.setattr(module, "library", lambda: library)
    return names


def step(num_layers: int, num_branches: int, extras: LayerExtras, products: str, launched: list[str]) -> list[str]:
    """What one decode step launches."""
    case = cases.Case(num_layers, 32, 48, 2, 1, 64, torch.float16, ((1, 20), (num_branches, 5)))
    inputs = case.inputs()
    inputs["k_cache"] = inputs["k_cache"].contiguous()  # as kv_cache.allocate lays it out on a GPU
    decoder = TorchDecoder(Trunk(case.weights(), (extras,) * num_layers), "triton", products=products)
    decoder.forward(**inputs)  # which makes the buffers
    launched.clear()
    with TorchKernels(launched):
        decoder.forward(**inputs)
    return list(launched)


def extras_of(has_bias: bool, has_qk_norm: bool) -> LayerExtras:
    norm = torch.ones(64, dtype=torch.float16) if has_qk_norm else None
    return LayerExtras(torch.ones(256, dtype=torch.float16) if has_bias else None, norm, norm)


EXTRAS = {
    "Llama": (extras_of(False, False), []),
    "Qwen2.5": (extras_of(True, False), []),
    "Qwen3": (extras_of(False, True), QK_NORM),
    "a bias and norms": (extras_of(True, True), ["add_", *QK_NORM]),
}


@pytest.mark.parametrize("products", LAYERS)
@pytest.mark.parametrize("family", EXTRAS)
def test_launches_of_a_layer(family, products, launched):
    (extras, norms), layer = EXTRAS[family], LAYERS[products]
    one, two = step(1, 3, extras, products, launched), step(2, 3, extras, products, launched)
    before = layer.index("_rope_store_kv")
    # The first launch is the embedding's, the last one the final norm's.
    assert two[1:-1] == 2 * [*layer[:before], *norms, *layer[before:]]
    assert two[1:-1] == 2 * one[1:-1]
    assert (two[0], two[-1]) == ("index_select", "_rms_norm")


@pytest.mark.parametrize("num_branches", [1, 16, 64])
def test_few_rows_take_six_launches_a_layer(num_branches, launched):
    """By default, where Triton is asked for."""
    one, two = (step(num, num_branches, EXTRAS["Qwen2.5"][0], "auto", launched) for num in (1, 2))
    assert len(two) - len(one) == 6


def test_a_step_s_scores_are_one_launch(launched):
    """It was five: four fills, of what the scores were folded into and then left there."""
    head = ScoreHead(torch.randn(2, 16), torch.randn(2), 1)
    hidden, rows, mask = torch.randn(5, 16), torch.arange(5, dtype=torch.int32), torch.arange(5) % 2 == 0
    with TorchKernels(launched):
        scores = head.score(hidden, rows, "cuda", mask)
    assert launched == ["step_score"]
    torch.testing.assert_close(scores, head.score(hidden, rows, "reference", mask), equal_nan=True)
