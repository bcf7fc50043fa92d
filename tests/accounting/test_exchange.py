"""The figures of the paper, in both versions, and what cannot be exchanged."""

import math

import pytest

from engine.accounting import Exchange


@pytest.mark.parametrize("version", ["arxiv", "iclr"])
@pytest.mark.parametrize("multiple", [256, 64, 16])
def test_the_paper_s_generations(version, multiple):
    """M of about 14 and the ratios that the paper names buy about 256, 64 and 16 generations."""
    ratios = {"arxiv": {256: 0.16, 64: 0.79, 16: 22}, "iclr": {256: 0.08, 64: 0.40, 16: 11}}
    trade = Exchange.from_ratios(14, ratios[version][multiple], version)
    assert trade.multiple == pytest.approx(multiple, rel=0.02)


@pytest.mark.parametrize("version", ["arxiv", "iclr"])
def test_both_sides_cost_the_same(version):
    trade = Exchange(6e8, 9e9, 2e11, 5e10, version)
    large = trade.pretrain_flops(9e9) + trade.inference_flops(9e9)
    small = trade.pretrain_flops(6e8) + trade.inference_flops(6e8, trade.multiple)
    assert small == pytest.approx(large)
    assert trade.pretrain_flops(6e8) == 6 * 6e8 * 2e11
    assert trade.inference_flops(6e8) == {"arxiv": 2, "iclr": 4}[version] * 6e8 * 5e10
    assert (trade.size_ratio, trade.token_ratio) == (15, 0.25)


def test_whole_answers():
    assert Exchange.from_ratios(4, 3.0).multiple == 7.0
    assert Exchange.from_ratios(4, 3.0).num_generations == 7
    assert Exchange.from_ratios(4, 3.0, "iclr").num_generations == 5  # 4 + 3/2
    assert Exchange.from_ratios(1.01, 1e9).num_generations == 1


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: Exchange.from_ratios(14, 0), "R, .* above 0 and finite, got 0"),
        (lambda: Exchange.from_ratios(14, -0.5), "got -0.5"),
        (lambda: Exchange.from_ratios(14, math.nan), "got nan"),
        (lambda: Exchange.from_ratios(1, 1), "M, .* above 1 and finite, got 1"),
        (lambda: Exchange.from_ratios(math.inf, 1), "got inf"),
        (lambda: Exchange(0, 1, 1, 1), "params_small must be above 0 and finite, got 0"),
        (lambda: Exchange(2, 1, 1, 1), "params_large must be above the params_small of 2, got 1"),
        (lambda: Exchange(1, 2, -3, 1), "tokens_pretrain .*got -3"),
        (lambda: Exchange(1, 2, 1, math.inf), "tokens_inference .*got inf"),
        (lambda: Exchange(1, 2, 1, 1, "draft"), "'draft'"),
    ],
)
def test_bad_values_are_named(make, received):
    with pytest.raises(ValueError, match=received):
        make()
