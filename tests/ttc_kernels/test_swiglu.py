import pytest
import torch

from ttc_kernels import _native
from ttc_kernels.swiglu import cases, reference, swiglu
from ttc_kernels.testing import assert_within_budget, poisoned

ISAS = _native.supported_isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", cases.tiny(), ids=str)
def test_error_budget(case, isa):
    gate_up = case.inputs(seed=1)["gate_up"]
    out = poisoned(case.num_rows, case.size, dtype=case.dtype)
    assert swiglu(gate_up, out, isa=isa) is out
    assert_within_budget(out, reference.swiglu(gate_up.double()), reference.swiglu(gate_up))


@pytest.mark.parametrize("isa", ISAS)
def test_large_and_special_gates(isa):
    gate = torch.tensor([0.0, 1e-30, 20.0, -20.0, 80.0, -80.0, 100.0, -100.0, 3e38, -3e38, torch.inf, torch.nan])
    out = swiglu(torch.cat([gate, torch.ones(12)])[None], isa=isa)[0].double()
    exact = torch.nn.functional.silu(gate.double())
    torch.testing.assert_close(out, exact, rtol=1e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
def test_relative_accuracy_over_the_whole_range(isa):
    gate = torch.linspace(-80, 80, 20_001)
    out = swiglu(torch.cat([gate, torch.ones(20_001)])[None], isa=isa)[0].double()
    exact = torch.nn.functional.silu(gate.double())
    limit = 6e-6 if isa == "portable" else 5e-7  # the portable path has no fused product to recover a rounding with
    assert ((out - exact).abs() <= limit * exact.abs()).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_independent(dtype, isa):
    generator = torch.Generator().manual_seed(4)
    rows = 300  # enough work for two threads
    gate_up = (2 * torch.randn(rows, 2 * 257, generator=generator)).to(dtype)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        out = swiglu(gate_up, isa=isa)
        torch.set_num_threads(1)
        for chosen in (torch.arange(rows), torch.randperm(rows, generator=generator), torch.tensor([299])):
            assert torch.equal(swiglu(gate_up[chosen], isa=isa), out[chosen])
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("isa", ISAS)
def test_strides_and_in_place(isa):
    wide = torch.randn(6, 90, generator=torch.Generator().manual_seed(5))
    gate_up = wide[:, 3:77]
    expected = swiglu(gate_up.contiguous(), isa=isa)
    target = poisoned(6, 50)
    swiglu(gate_up, target[:, 5:42], isa=isa)
    assert torch.equal(target[:, 5:42], expected)
    assert target[:, :5].isnan().all()
    assert target[:, 42:].isnan().all()
    assert torch.equal(swiglu(gate_up, gate_up[:, :37], isa=isa), expected)


def test_no_rows():
    assert swiglu(torch.empty(0, 8)).shape == (0, 4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"swiglu: gate_up must be .* got \(2, 7\)"):
        swiglu(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"swiglu: gate_up must be .* torch.float64"):
        swiglu(torch.zeros(2, 8).double())
    with pytest.raises(ValueError, match=r"swiglu: gate_up must be .* strides \(1, 8\)"):
        swiglu(torch.zeros(4, 8).T)
    with pytest.raises(ValueError, match=r"swiglu: out must be \(2, 4\) .* got \(2, 8\)"):
        swiglu(torch.zeros(2, 8), torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"impl must be .* got 'fast'"):
        swiglu(torch.zeros(2, 8), impl="fast")
