"""tree_attention in Triton's interpreter, against its definition in float64; each tile takes some milliseconds."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.ttc_kernels.interpreter import DTYPES, widened
from tests.ttc_kernels.test_tree_attention import ids
from ttc_kernels.testing import assert_within_budget, in_dtypes, poisoned
from ttc_kernels.tree_attention import cases, tree_attention

FP32 = torch.float32
SMALL = [case for case in cases.tiny() if case.levels == ((1, 16), (2, 1)) and case.num_kv_heads < 4]
DEEP = [
    cases.Case(3, 1, 24, FP32, ((1, 37), (3, 5), (2, 9)), num_queries=11, spread=4),  # narrow and wide tiles
    cases.Case(2, 1, 16, FP32, ((1, 300), (2, 3))),  # a node split along its keys
    cases.Case(4, 1, 18, FP32, ((1, 270),), num_queries=20, block_size=32),  # causal across the split
]


@dataclass(eq=False)
class FakePlan:
    items: np.ndarray
    blocks: np.ndarray


@pytest.mark.parametrize("case", in_dtypes(SMALL + DEEP, DTYPES), ids=ids)
def test_matches_the_reference_in_float64(case):
    inputs = case.inputs(seed=len(ids(case)))
    exact, plain = (tree_attention(**x, impl="reference") for x in (widened(inputs), inputs))
    out = poisoned(*exact.shape, dtype=case.dtype)
    assert tree_attention(**inputs, out=out, impl="triton") is out
    assert_within_budget(out, exact, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
def test_caches_in_the_memory_order_of_a_gpu(dtype):
    inputs = cases.Case(4, 2, 20, dtype, ((1, 20), (2, 5))).inputs()
    on_cpu = tree_attention(**inputs, impl="triton")
    assert not inputs["k_cache"].is_contiguous()
    inputs["k_cache"] = inputs["k_cache"].contiguous()
    assert torch.equal(tree_attention(**inputs, impl="triton"), on_cpu)


def test_a_plan_s_schedule_serves_other_layers_and_shapes():
    first = cases.Case(2, 1, 16, FP32, ((1, 20), (2, 5))).inputs(seed=1)
    for heads in ((2, 1), (3, 1)):
        inputs = cases.Case(*heads, 16, FP32, ((1, 20), (2, 5))).inputs(seed=1) | {"plan": first["plan"]}
        for _ in range(2):
            inputs["q"] = torch.randn(inputs["q"].shape)
            expected = tree_attention(**inputs, impl="reference")
            torch.testing.assert_close(tree_attention(**inputs, impl="triton"), expected)


def test_peaked_and_tiny_scores():
    inputs = cases.Case(4, 2, 32, FP32, ((1, 70), (2, 9))).inputs()
    for scale in (60.0, 0.0, -3.0):
        inputs["scale"] = scale
        out = tree_attention(**inputs, impl="triton")
        # A score of some hundreds has an absolute error of its own; plain torch's is the measure again.
        plain = tree_attention(**inputs, impl="reference")
        assert_within_budget(out, tree_attention(**widened(inputs), impl="reference"), plain, num_ulps=600)


def test_a_bad_row_stays_alone():
    inputs = cases.Case(4, 2, 32, FP32, ((1, 40), (3, 20))).inputs()
    clean = tree_attention(**inputs, impl="triton")
    inputs["q"][2, 1] = float("nan")
    out = tree_attention(**inputs, impl="triton")
    assert torch.isnan(out[2, 1]).all()
    out[2, 1] = clean[2, 1]
    assert torch.equal(out, clean)


def test_strided_heads_and_a_row_without_items():
    inputs = cases.Case(4, 2, 16, FP32, ((1, 20), (3, 5))).inputs()
    expected = tree_attention(**inputs, impl="triton")
    wide = poisoned(5, 4, 3 * 16)
    wide[:3, :, 16:32] = inputs["q"]
    wide[3:] = 1.0
    inputs["q"] = wide[:, :, 16:32]  # the plan covers three of five rows
    out = tree_attention(**inputs, impl="triton")
    assert torch.equal(out[:3], expected)
    assert torch.equal(out[3:], torch.zeros(2, 4, 16))


def test_nothing_to_attend():
    inputs = cases.Case(4, 2, 16, FP32, ((1, 20),)).inputs()
    inputs["plan"] = FakePlan(np.zeros((0, 5), np.int32), np.zeros(0, np.int32))
    out = poisoned(1, 4, 16)
    assert torch.equal(tree_attention(**inputs, out=out, impl="triton"), torch.zeros(1, 4, 16))
    inputs["q"] = inputs["q"][:0]
    assert tree_attention(**inputs, impl="triton").shape == (0, 4, 16)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"q": torch.zeros(1, 4, 32)[:, :, ::2]}, r"strides \(128, 32, 2\)"),
        ({name: torch.zeros(2, 2, 8, 16) for name in ("k_cache", "v_cache")}, r"\(2, 2, 8, 16\)"),
        ({"out": torch.zeros(1, 4, 8)}, r"\(1, 4, 8\)"),
    ],
)
def test_refuses(change, shown):
    inputs = cases.Case(4, 2, 16, FP32, ((1, 20),)).inputs()
    with pytest.raises(ValueError, match=rf"tree_attention: .*{shown}"):
        tree_attention(**{**inputs, **change}, impl="triton")
    double = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    with pytest.raises(ValueError, match=r"tree_attention: .* torch.float64"):
        tree_attention(**double, impl="triton")
