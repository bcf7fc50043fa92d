import pytest
import torch

from ttc_kernels import _native
from ttc_kernels.rms_norm import cases, reference, rms_norm
from ttc_kernels.testing import assert_within_budget, poisoned

ISAS = _native.supported_isas()


def widened(inputs: dict) -> dict:
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", cases.tiny(), ids=str)
def test_error_budget(case, isa):
    inputs, plain, exact = case.inputs(seed=1), case.inputs(seed=1), widened(case.inputs(seed=1))
    out = poisoned(*inputs["x"].shape, dtype=case.dtype)
    result = rms_norm(**inputs, out=out, isa=isa)
    assert result is out
    assert_within_budget(out, reference.rms_norm(**exact), reference.rms_norm(**plain))
    if case.has_residual:
        assert torch.equal(inputs["residual"], plain["residual"])
        assert torch.equal(inputs["x"], plain["x"])


def test_rounds_as_transformers_does():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm  # slow to import: for this test only

    norm = LlamaRMSNorm(96, eps=1e-6).to(torch.bfloat16)
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.3, 2, 96))
        difference = (rms_norm(x, norm.weight, 1e-6).float() - norm(x).float()).abs()
    assert (difference > 0).float().mean() < 0.005  # where 1 / sqrt falls on the other side of a rounding


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_independent(dtype, isa):
    generator = torch.Generator().manual_seed(4)
    rows, hidden = 300, 257  # enough work for two threads
    x, residual = torch.randn(2, rows, hidden, generator=generator).to(dtype)
    weight = torch.randn(hidden, generator=generator).to(dtype)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        total = residual.clone()
        out = rms_norm(x, weight, 1e-5, residual=total, isa=isa)
        torch.set_num_threads(1)
        for chosen in (torch.arange(rows), torch.randperm(rows, generator=generator), torch.tensor([299])):
            part = residual[chosen]
            assert torch.equal(rms_norm(x[chosen], weight, 1e-5, residual=part, isa=isa), out[chosen])
            assert torch.equal(part, total[chosen])
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("isa", ISAS)
def test_strides_and_in_place(isa):
    wide = torch.randn(6, 50, generator=torch.Generator().manual_seed(5))
    x, weight = wide[:, 3:40], torch.linspace(-1, 1, 37)
    expected = rms_norm(x.contiguous(), weight, 1e-6, isa=isa)
    target = poisoned(6, 50)
    rms_norm(x, weight, 1e-6, out=target[:, 5:42], isa=isa)
    assert torch.equal(target[:, 5:42], expected)
    assert target[:, :5].isnan().all()
    assert target[:, 42:].isnan().all()
    before = wide.clone()
    assert torch.equal(rms_norm(x, weight, 1e-6, out=x, isa=isa), expected)
    assert torch.equal(wide[:, 40:], before[:, 40:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nan_stays_in_its_row(dtype, isa):
    x = torch.ones(3, 40, dtype=dtype)
    x[1, 39] = torch.nan
    out = rms_norm(x, torch.ones(40, dtype=dtype), 1e-6, residual=torch.ones(3, 40, dtype=dtype), isa=isa)
    assert out.isnan().all(-1).tolist() == [False, True, False]
    assert not out[[0, 2]].isnan().any()


def test_eps_matters_and_no_rows_are_fine():
    x = torch.full((1, 8), 1e-3)
    assert rms_norm(x, torch.ones(8), 1e-2)[0, 0] < 0.1 * rms_norm(x, torch.ones(8), 1e-12)[0, 0]
    assert rms_norm(torch.empty(0, 8), torch.ones(8), 1e-6).shape == (0, 8)


def test_wrong_arguments():
    x, weight = torch.zeros(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"rms_norm: x must be .* got \(8,\)"):
        rms_norm(weight, weight, 1e-6)
    with pytest.raises(ValueError, match=r"rms_norm: x must be .* torch.float16"):
        rms_norm(x.half(), weight.half(), 1e-6)
    with pytest.raises(ValueError, match=r"rms_norm: x must be .* strides"):
        rms_norm(torch.zeros(8, 2).T, weight, 1e-6)
    with pytest.raises(ValueError, match=r"rms_norm: weight must be .* got \(7,\)"):
        rms_norm(x, torch.ones(7), 1e-6)
    with pytest.raises(ValueError, match=r"rms_norm: residual must be .* torch.bfloat16"):
        rms_norm(x, weight, 1e-6, residual=x.bfloat16())
    with pytest.raises(ValueError, match=r"rms_norm: out must be .* got \(3, 8\)"):
        rms_norm(x, weight, 1e-6, out=torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"impl must be .* got 'fast'"):
        rms_norm(x, weight, 1e-6, impl="fast")
