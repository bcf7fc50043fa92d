"""The trunk with fused products against the one with torch's, both by Triton's kernels in its interpreter.

tests/runtime/executors/test_gpu.py has the tokens that a policy draws with either.
"""

from dataclasses import replace

import pytest
import torch

from engine.errors import UserError
from engine.model.placement import Placement
from engine.model.products import FusedProducts, products_of
from engine.model.ranks import ALONE, Ranks
from engine.model.unpacked import TorchDecoder
from engine.model.weights import LayerExtras, Trunk
from engine.model.workspace import Workspace
from tests.runtime.executors.conftest import few_programs  # noqa: F401  (a fixture)
from tests.ttc_kernels.test_choice import OnGpu
from ttc_kernels.choice import PRODUCTS, chooser
from ttc_kernels.decoder import cases
from ttc_kernels.testing import assert_within_budget

pytestmark = pytest.mark.usefixtures("few_programs")
CASE = cases.Case(2, 48, 72, 2, 1, 16, torch.float32, ((1, 20), (3, 5)))


def hidden(case: cases.Case, extras: LayerExtras, impl: str, products: str) -> torch.Tensor:
    """Hidden states after two forwards, which find the buffers as the one before left them."""
    decoder, inputs = TorchDecoder(Trunk(case.weights(), (extras,) * 2), impl, products=products), case.inputs()
    decoder.forward(**inputs)
    return decoder.forward(**inputs)[: len(inputs["token_ids"])].clone()


def extras_of(has_bias: bool, has_qk_norm: bool, dtype: torch.dtype) -> LayerExtras:
    norm = torch.linspace(0.5, 1.5, 16, dtype=dtype) if has_qk_norm else None
    return LayerExtras(torch.linspace(-1, 1, 64, dtype=dtype) if has_bias else None, norm, norm)


@pytest.mark.parametrize(("has_bias", "has_qk_norm"), [(False, False), (True, False), (False, True)])
def test_both_compute_the_same(has_bias, has_qk_norm):
    fused, separate = (
        hidden(CASE, extras_of(has_bias, has_qk_norm, CASE.dtype), "triton", products)
        for products in ("fused_linear", "torch")
    )
    torch.testing.assert_close(fused, separate, atol=2e-5, rtol=0)
    assert not torch.equal(fused, separate), "they round in other places"


def test_float16_is_as_exact():
    half = replace(CASE, dtype=torch.float16)
    exact = hidden(CASE, extras_of(True, False, torch.float32), "native", "torch")
    fused, separate = (
        hidden(half, extras_of(True, False, half.dtype), "triton", products) for products in ("fused_linear", "torch")
    )
    assert_within_budget(fused, exact.double(), separate)


def test_who_has_fused_products():
    """By default a GPU in bfloat16 with up to 64 rows; otherwise who asks for them, or for Triton."""
    workspace = Workspace(CASE.weights(), 16)

    def is_fused(impl: str, products: str, ranks: Ranks = ALONE) -> bool:
        return isinstance(products_of(workspace, 3, 1e-5, impl, ranks, products), FusedProducts)

    assert [is_fused(impl, "auto") for impl in ("auto", "native", "reference", "triton")] == [False, False, False, True]
    assert [is_fused("triton", products) for products in ("torch", "fused_linear")] == [False, True]
    assert is_fused("auto", "fused_linear")
    assert not is_fused("triton", "fused_linear", Ranks(0, 2)), "their sum comes before the residual's"
    choose = chooser("products", PRODUCTS)
    chosen = {
        (num_rows, dtype): choose("auto", OnGpu(num_rows, dtype=dtype))
        for num_rows in (1, 64, 65)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    assert {key for key, name in chosen.items() if name == "fused_linear"} == {
        (1, torch.bfloat16),
        (64, torch.bfloat16),
    }
    assert set(chosen.values()) == {"fused_linear", "torch"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"products": "fused"}, "products must be auto, torch or fused_linear, got 'fused'"),
        ({"products": "fused_linear", "ranks": Ranks(0, 2)}, "'fused_linear' are of one rank alone, got 2 ranks"),
    ],
)
def test_products_that_cannot_be_had_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Placement(torch.device("cpu"), **options)


def test_a_captured_graphs_scratch_stays_where_it_is():
    """Forwards of other sizes have scratch of their own."""
    decoder = TorchDecoder(Trunk(CASE.weights(), (LayerExtras(),) * 2), "triton")
    first = decoder._products_of(16).scratch
    assert decoder._products_of(3).scratch is first
    assert decoder._products_of(17).scratch is not first
    assert decoder._products_of(16).scratch is first
