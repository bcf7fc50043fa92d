"""step_score in Triton's interpreter: its definition in float64, and the fold's own bits."""

import math

import pytest
import torch

from tests.ttc_kernels.interpreter import DTYPES
from tests.ttc_kernels.test_step_score import in_float64, inputs_for
from ttc_kernels.step_score import LabelHead, cases, fold, reference, step_score
from ttc_kernels.testing import assert_within_budget, in_dtypes


@pytest.mark.parametrize("case", in_dtypes([c for c in cases.tiny() if c.num_scores < 30], DTYPES), ids=str)
def test_error_budget(case):
    inputs, plain, exact = case.inputs(seed=1), case.inputs(seed=1), in_float64(case.inputs(seed=1))
    scores = step_score(**inputs, impl="triton")
    assert_within_budget(scores, reference.step_score(**exact), reference.step_score(**plain))
    assert torch.equal(inputs["counts"], plain["counts"])
    torch.testing.assert_close(inputs["state"], plain["state"], atol=2e-6, rtol=0)


def test_folds_as_the_definition_does():
    """The same scores through `fold` give the same bits, later calls and shared slots included."""
    state, counts = torch.full((5, 4), torch.nan), [0] * 5
    case = cases.Case(9, 20, 17, 2, torch.float32, True, 5)
    first = case.inputs(seed=0)
    first["state"].fill_(torch.nan)  # what stands in an empty slot does not matter
    for seed in (0, 1):
        inputs = {**case.inputs(seed), "state": first["state"], "counts": first["counts"]}
        scores = step_score(**inputs, impl="triton")
        for s, score in zip(inputs["slot"].tolist(), scores.tolist(), strict=True):
            state[s] = fold(state[s], counts[s], score)
            counts[s] += 1
    assert first["counts"].tolist() == counts
    assert torch.equal(first["state"], state)


def test_saturated_scores_and_nan():
    inputs = inputs_for([1000.0, -1000.0, 1000.0], [0, 1, 1], 2)
    assert step_score(**inputs, impl="triton").tolist() == [1.0, 0.0, 1.0]
    assert inputs["state"].tolist() == [[1.0] * 4, [1.0, 0.0, 0.0, 0.5]]
    inputs = inputs_for([1.0, -1.0], [0, 1], 2)
    inputs["head"] = LabelHead(torch.tensor([[-1e5], [1e5], [0.0]]), None, 1)
    assert step_score(**inputs, impl="triton").tolist() == [1.0, 0.0]
    for num_labels in (1, 2):
        inputs = inputs_for([0.0, math.nan, 0.0, 0.0], [0, 1, 1, 2], 3)
        inputs["head"] = LabelHead(torch.ones(num_labels, 1), None, 0)
        assert step_score(**inputs, impl="triton").isnan().tolist() == [False, True, False, False]
        assert not inputs["state"][[0, 2]].isnan().any()
        assert inputs["state"][1].isnan().tolist() == [False, True, True, True]


def test_good_index_and_bias_matter():
    inputs = cases.Case(6, 6, 16, 3, torch.float32, True, 6).inputs(seed=2)
    head = inputs["head"]
    logits = inputs["hidden"][inputs["rows"].long()] @ head.weight.T + head.bias
    for good_index in range(3):
        scores = step_score(**{**inputs, "head": head._replace(good_index=good_index)}, impl="triton")
        torch.testing.assert_close(scores, logits.softmax(-1)[:, good_index])
    without = step_score(**{**inputs, "head": head._replace(bias=None)}, impl="triton")
    assert (without - step_score(**inputs, impl="triton")).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "value"), [("rows", 4), ("rows", -1), ("slot", 3), ("slot", -1)])
def test_out_of_range_is_not_folded(name, value):
    """Where the native kernel raises, an exception would have to wait for the GPU."""
    case = cases.Case(4, 5, 16, 2, torch.float32, True, 3)
    inputs, others = case.inputs(), case.inputs()
    inputs[name][2] = value
    scores = step_score(**inputs, impl="triton")
    keep = [0, 1, 3, 4]
    expected = step_score(**{**others, "rows": others["rows"][keep], "slot": others["slot"][keep]}, impl="triton")
    assert torch.equal(scores[keep], expected)
    assert scores[2].isnan() == (name == "rows")
    assert torch.equal(inputs["state"], others["state"])
    assert torch.equal(inputs["counts"], others["counts"])


def test_no_scores():
    inputs = cases.Case(4, 0, 16, 2, torch.float32, True, 3).inputs()
    assert step_score(**inputs, impl="triton").shape == (0,)
    assert inputs["counts"].tolist() == [0, 0, 0]
