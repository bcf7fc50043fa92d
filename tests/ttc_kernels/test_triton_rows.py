"""rms_norm and swiglu in Triton's interpreter, against their definitions in float64."""

from dataclasses import replace

import pytest
import torch

from tests.ttc_kernels.interpreter import DTYPES, widened
from ttc_kernels.rms_norm import cases as norm_cases
from ttc_kernels.rms_norm import reference as norm_reference
from ttc_kernels.rms_norm import rms_norm
from ttc_kernels.swiglu import cases as swiglu_cases
from ttc_kernels.swiglu import reference as swiglu_reference
from ttc_kernels.swiglu import swiglu
from ttc_kernels.testing import assert_within_budget, in_dtypes, poisoned


@pytest.mark.parametrize("case", in_dtypes(norm_cases.tiny(), DTYPES), ids=str)
def test_rms_norm(case):
    inputs, plain, exact = case.inputs(seed=1), case.inputs(seed=1), widened(case.inputs(seed=1))
    out = poisoned(*inputs["x"].shape, dtype=case.dtype)
    assert rms_norm(**inputs, out=out, impl="triton") is out
    assert_within_budget(out, norm_reference.rms_norm(**exact), norm_reference.rms_norm(**plain))
    if case.has_residual:
        assert torch.equal(inputs["residual"], plain["residual"])
        assert torch.equal(inputs["x"], plain["x"])


def test_rms_norm_strides_and_in_place():
    wide = torch.randn(3, 50, generator=torch.Generator().manual_seed(5))
    x, weight = wide[:, 3:40], torch.linspace(-1, 1, 37)
    expected = rms_norm(x.contiguous(), weight, 1e-6, impl="triton")
    target = poisoned(3, 50)
    rms_norm(x, weight, 1e-6, out=target[:, 5:42], impl="triton")
    assert torch.equal(target[:, 5:42], expected)
    assert target[:, :5].isnan().all()
    assert target[:, 42:].isnan().all()
    before = wide.clone()
    assert torch.equal(rms_norm(x, weight, 1e-6, out=x, impl="triton"), expected)
    assert torch.equal(wide[:, 40:], before[:, 40:])


def test_rms_norm_keeps_a_nan_in_its_row_and_takes_no_rows():
    x = torch.ones(3, 40)
    x[1, 39] = torch.nan
    out = rms_norm(x, torch.ones(40), 1e-6, residual=torch.ones(3, 40), impl="triton")
    assert out.isnan().all(-1).tolist() == [False, True, False]
    assert not out[[0, 2]].isnan().any()
    assert rms_norm(torch.empty(0, 8), torch.ones(8), 1e-6, impl="triton").shape == (0, 8)


def test_rms_norm_refuses_a_row_that_no_program_holds():
    hidden = 2**16 + 1
    with pytest.raises(ValueError, match=r"rms_norm: .* up to 65536, got 65537"):
        rms_norm(torch.ones(1, hidden), torch.ones(hidden), 1e-6, impl="triton")


@pytest.mark.parametrize("case", in_dtypes([*swiglu_cases.tiny(), swiglu_cases.Case(1, 1500, torch.float32)], DTYPES))
def test_swiglu(case):
    inputs = case.inputs(seed=1)
    out = poisoned(case.num_rows, case.size, dtype=case.dtype)
    assert swiglu(**inputs, out=out, impl="triton") is out
    assert_within_budget(out, swiglu_reference.swiglu(**widened(inputs)), swiglu_reference.swiglu(**inputs))


def test_swiglu_strides_in_place_and_far_gates():
    wide = 3 * torch.randn(3, 30, generator=torch.Generator().manual_seed(2))
    wide[0, 4], wide[1, 4] = 200.0, -200.0
    gate_up = wide[:, 4:24]
    expected = swiglu_reference.swiglu(gate_up)
    rest = wide[:, 14:].clone()
    out = swiglu(gate_up, out=gate_up[:, :10], impl="triton")
    torch.testing.assert_close(out, expected)
    assert torch.equal(wide[:, 14:], rest)
    assert swiglu(torch.empty(0, 8), impl="triton").shape == (0, 4)


def test_float16_is_for_triton_alone():
    half = replace(swiglu_cases.tiny()[0], dtype=torch.float16).inputs()
    for impl in ("native", "reference", "auto"):
        with pytest.raises(ValueError, match=r"swiglu: .* torch.float16"):
            swiglu(**half, impl=impl)
