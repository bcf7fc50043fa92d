"""fused_linear in Triton's interpreter, against its definition in float64."""

import pytest
import torch

from tests.ttc_kernels.interpreter import DTYPES, widened
from ttc_kernels.fused_linear import Scratch, cases, fused_linear, reference, tiles_of
from ttc_kernels.fused_linear.cases import Case
from ttc_kernels.testing import assert_within_budget, in_dtypes, poisoned


def tiles_for(case: Case):
    return tiles_of(case.num_rows, case.num_out, case.width, case.dtype.itemsize, case.is_gated)


def poisoned_scratch(case: Case) -> Scratch:
    """Scratch whose partial results hold NaN: what no split writes shows."""
    scratch = Scratch([tiles_for(case)], torch.device("cpu"))
    scratch.partial.fill_(torch.nan)
    scratch.squares.fill_(torch.nan)
    return scratch


def copied(inputs: dict) -> dict:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize("case", in_dtypes(cases.tiny(), DTYPES), ids=str)
def test_error_budget(case):
    inputs, plain, exact = case.inputs(seed=1), case.inputs(seed=1), widened(case.inputs(seed=1))
    scratch = poisoned_scratch(case)
    target = inputs["residual"]
    if target is None:
        target = inputs["out"] = poisoned(case.num_rows, case.num_out, dtype=case.dtype)
    assert fused_linear(**inputs, scratch=scratch, impl="triton") is target
    assert_within_budget(target, reference.fused_linear(**exact), reference.fused_linear(**plain))
    assert torch.equal(inputs["x"], plain["x"])
    assert not scratch.arrived.any()


def test_the_cases_have_what_the_kernel_knows():
    """One split and several, several tiles in both directions, a part of a step, and whole steps."""
    found = [tiles_for(case) for case in cases.tiny() if case.dtype is torch.float32]
    assert {tiles.num_splits > 1 for tiles in found} == {True, False}
    assert {tiles.block_rows for tiles in found} == {16, 32, 64}
    assert max(tiles.num_row_blocks for tiles in found) > 1
    assert max(tiles.num_out_blocks for tiles in found) > 1
    assert any(tiles.num_splits > 1 and tiles.num_products == 2 for tiles in found)
    assert {case.width % tiles_for(case).block_width == 0 for case in cases.tiny()} == {True, False}


@pytest.mark.parametrize(("num_rows", "width"), [(16, 800), (30, 400), (64, 400)])
@pytest.mark.parametrize("kind", [{"has_norm": True, "is_gated": True}, {"has_residual": True}], ids=str)
def test_a_row_has_the_same_bits_beside_any_others(num_rows, width, kind):
    case = Case(num_rows, 5, width, torch.float16, **kind)
    assert tiles_for(case).num_splits > 1
    inputs = case.inputs(seed=3)
    whole = fused_linear(**copied(inputs), impl="triton")
    kept = torch.arange(num_rows) % 5 == 3
    for name in ("x", "residual"):
        if inputs[name] is not None:
            inputs[name][~kept] = torch.nan
    alone = fused_linear(**inputs, impl="triton")
    assert torch.equal(alone[kept], whole[kept])
    assert alone[~kept].isnan().all()


def test_strides_and_a_scratch_that_serves_many():
    """The rows of x, out and the residual lie apart; one scratch serves products of several shapes, again and again."""
    wide = torch.randn(5, 410, generator=torch.Generator().manual_seed(5))
    x, weight = wide[:, 3:403], torch.linspace(-1, 1, 400 * 6).view(6, 400) / 40
    scratch = Scratch([tiles_of(5, 6, 400, 4, False), tiles_of(5, 3, 400, 4, True)], x.device)
    target = poisoned(5, 20)
    for is_gated, num_out in ((False, 6), (True, 3), (False, 6)):
        target.fill_(torch.nan)
        out, expected = target[:, 7 : 7 + num_out], reference.fused_linear(x, weight, is_gated=is_gated)
        fused_linear(x, weight, is_gated=is_gated, out=out, scratch=scratch, impl="triton")
        torch.testing.assert_close(out, expected)
        fused_linear(x, weight, is_gated=is_gated, residual=out, scratch=scratch, impl="triton")
        torch.testing.assert_close(out, 2 * expected)
        assert target[:, :7].isnan().all()
        assert target[:, 7 + num_out :].isnan().all()


def test_a_nan_stays_in_its_row_and_no_rows_are_taken():
    case = Case(3, 9, 400, torch.float32, has_norm=True, is_gated=True)
    inputs = case.inputs()
    inputs["x"][1, 399] = torch.nan
    out = fused_linear(**inputs, impl="triton")
    assert out.isnan().all(1).tolist() == [False, True, False]
    assert not out[[0, 2]].isnan().any()
    assert fused_linear(torch.empty(0, 8), torch.ones(4, 8), impl="triton").shape == (0, 4)


def test_wrong_arguments():
    x, weight = torch.zeros(2, 8), torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"fused_linear: x must be \(rows, width\) .* torch.float64"):
        fused_linear(x.double(), weight.double())
    with pytest.raises(ValueError, match=r"fused_linear: x must be \(rows, width\) .* got \(8,\)"):
        fused_linear(x[0], weight)
    with pytest.raises(ValueError, match=r"fused_linear: x must be .* torch.float16 .* for impl 'reference'"):
        fused_linear(x.half(), weight.half())
    with pytest.raises(ValueError, match=r"fused_linear: x must be \(8, 2\) .* adjacent elements"):
        fused_linear(x.t(), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"fused_linear: weight must be contiguous, \(4, 8\) .* got \(4, 9\)"):
        fused_linear(x, torch.zeros(4, 9))
    with pytest.raises(ValueError, match=r"fused_linear: weight must have as many gates as ups, got 3 outputs"):
        fused_linear(x, weight[:3], is_gated=True)
    with pytest.raises(ValueError, match=r"fused_linear: norm must be contiguous, \(8,\) .* got \(4,\)"):
        fused_linear(x, weight, norm=torch.ones(4))
    with pytest.raises(ValueError, match=r"fused_linear: residual must be \(2, 4\) .* got \(2, 8\)"):
        fused_linear(x, weight, residual=torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"fused_linear: out must be \(2, 2\) .* got \(2, 4\)"):
        fused_linear(x, weight, is_gated=True, out=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="the result is the residual where there is one, got out too"):
        fused_linear(x, weight, residual=torch.zeros(2, 4), out=torch.zeros(2, 4))
    for name in ("residual", "out"):
        with pytest.raises(ValueError, match=f"x is read while the result is written, so {name} cannot be x"):
            fused_linear(x, torch.zeros(8, 8), **{name: x[:]})
    with pytest.raises(ValueError, match=r"fused_linear: impl must be 'auto', 'triton' or 'reference', got 'native'"):
        fused_linear(x, weight, impl="native")
    small = Scratch([tiles_of(2, 4, 8, 4, False)], x.device)
    with pytest.raises(ValueError, match="fused_linear: scratch must have room"):
        fused_linear(torch.zeros(2, 600), torch.zeros(4, 600), scratch=small, impl="triton")
