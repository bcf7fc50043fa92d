import math

import pytest
import torch

from ttc_kernels import _native
from ttc_kernels.step_score import LabelHead, cases, fold, reference, step_score
from ttc_kernels.testing import assert_within_budget

ISAS = _native.supported_isas()
WAYS = [{"isa": isa} for isa in ISAS] + [{"impl": "reference"}]


def inputs_for(logits: list[float], slot: list[int], num_slots: int) -> dict:
    """Arguments that give sigmoid(logits[i]) as score i."""
    return {
        "hidden": torch.tensor(logits)[:, None],
        "rows": torch.arange(len(logits), dtype=torch.int32),
        "head": LabelHead(torch.ones(1, 1), None, 0),
        "state": torch.full((num_slots, 4), torch.nan),
        "counts": torch.zeros(num_slots, dtype=torch.int32),
        "slot": torch.tensor(slot, dtype=torch.int32),
    }


def in_float64(inputs: dict) -> dict:
    """The arguments with hidden states and head in float64."""
    weight, bias, good_index = inputs["head"]
    head = LabelHead(weight.double(), None if bias is None else bias.double(), good_index)
    return inputs | {"hidden": inputs["hidden"].double(), "head": head}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", cases.tiny(), ids=str)
def test_error_budget(case, isa):
    inputs, plain, exact = case.inputs(seed=1), case.inputs(seed=1), in_float64(case.inputs(seed=1))
    scores = step_score(**inputs, isa=isa)
    assert_within_budget(scores, reference.step_score(**exact), reference.step_score(**plain))
    assert torch.equal(inputs["counts"], plain["counts"])
    torch.testing.assert_close(inputs["state"], plain["state"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_native_folds_as_the_definition_does(isa):
    """The same scores through `fold` give the same bits, later calls and shared slots included."""
    state = torch.full((5, 4), torch.nan)
    counts = [0] * 5
    native = cases.Case(30, 40, 33, 2, torch.float32, True, 5)
    first = native.inputs(seed=0)
    first["state"].fill_(torch.nan)  # what stands in an empty slot does not matter
    for seed in (0, 1, 2):
        inputs = {**native.inputs(seed), "state": first["state"], "counts": first["counts"]}
        scores = step_score(**inputs, isa=isa)
        for s, score in zip(inputs["slot"].tolist(), scores.tolist(), strict=True):
            state[s] = fold(state[s], counts[s], score)
            counts[s] += 1
    assert first["counts"].tolist() == counts
    assert torch.equal(first["state"], state)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_several_scores_into_one_slot(impl):
    logits = [math.log(p / (1 - p)) for p in (0.5, 0.8, 0.25, 0.9)]
    inputs = inputs_for(logits, [2, 0, 2, 2], 3)
    scores = step_score(**inputs, impl=impl)
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.8, 0.25, 0.9]))
    assert inputs["counts"].tolist() == [1, 0, 3]
    last_min_prod_mean = torch.tensor([0.9, 0.25, 0.5 * 0.25 * 0.9, (0.5 + 0.25 + 0.9) / 3])
    torch.testing.assert_close(inputs["state"][2], last_min_prod_mean)
    torch.testing.assert_close(inputs["state"][0], torch.full((4,), 0.8))
    assert inputs["state"][1].isnan().all()  # not touched


MASK_WAYS = [*WAYS, {"impl": "triton"}]


@pytest.mark.parametrize("way", MASK_WAYS, ids=str)
@pytest.mark.parametrize("num_set", [0, 5, 12])
def test_what_the_mask_leaves_out_is_not_scored(num_set, way):
    case = cases.Case(7, 12, 33, 2, torch.float32, True, 4)
    inputs, chosen = case.inputs(seed=4), case.inputs(seed=4)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[torch.randperm(12, generator=torch.Generator().manual_seed(5))[:num_set]] = True
    chosen["rows"], chosen["slot"] = chosen["rows"][mask], chosen["slot"][mask]
    expected = step_score(**chosen, impl="reference")
    inputs["hidden"][[row for row in range(7) if row not in chosen["rows"].tolist()]] = math.nan
    scores = step_score(**inputs, mask=mask, **way)
    torch.testing.assert_close(scores[mask], expected)
    assert scores[~mask].isnan().all()
    assert torch.equal(inputs["counts"], chosen["counts"])
    torch.testing.assert_close(inputs["state"], chosen["state"], atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match=r"mask must be contiguous, \(12,\) torch.bool, got \(3,\)"):
        step_score(**inputs, mask=mask[:3], **way)


@pytest.mark.parametrize("way", MASK_WAYS, ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
def test_scores_alone_are_those_that_are_folded(is_masked, way):
    inputs = cases.Case(7, 12, 33, 2, torch.float32, True, 4).inputs(seed=4)
    options = {"mask": torch.arange(12) % 3 != 0, **way} if is_masked else way
    alone = {name: inputs[name] for name in ("hidden", "rows", "head")}
    torch.testing.assert_close(
        step_score(**alone, **options), step_score(**inputs, **options), rtol=0, atol=0, equal_nan=True
    )
    with pytest.raises(ValueError, match="state, counts and slot go together"):
        step_score(**alone, slot=inputs["slot"], **options)


def test_fold_leaves_its_input_alone():
    row = torch.tensor([0.5, 0.5, 0.5, 0.5])
    after = fold(row, 1, 0.25)
    assert after.tolist() == [0.25, 0.25, 0.125, 0.375]
    assert row.tolist() == [0.5] * 4
    assert fold(row, 0, 0.75).tolist() == [0.75] * 4


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_saturated_scores_pass(impl):
    inputs = inputs_for([1000.0, -1000.0, 1000.0], [0, 1, 1], 2)
    assert step_score(**inputs, impl=impl).tolist() == [1.0, 0.0, 1.0]
    assert inputs["state"].tolist() == [[1.0] * 4, [1.0, 0.0, 0.0, 0.5]]
    inputs = inputs_for([1.0, -1.0], [0, 1], 2)
    inputs["head"] = LabelHead(torch.tensor([[-1e5], [1e5], [0.0]]), None, 1)
    assert step_score(**inputs, impl=impl).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("num_labels", [1, 2])
def test_nan_is_visible_and_stays_in_its_slot(num_labels, way):
    inputs = inputs_for([0.0, math.nan, 0.0, 0.0], [0, 1, 1, 2], 3)
    inputs["head"] = LabelHead(torch.ones(num_labels, 1), None, 0)
    scores = step_score(**inputs, **way)
    assert scores.isnan().tolist() == [False, True, False, False]
    state = inputs["state"]
    assert not state[[0, 2]].isnan().any()
    assert state[1].isnan().tolist() == [False, True, True, True]  # last is the later, sound score
    inputs["rows"], inputs["slot"] = torch.tensor([[1], [2]], dtype=torch.int32)
    step_score(**inputs, **way)
    assert inputs["state"][2].isnan().all()


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_good_index_and_bias_matter(impl):
    inputs = cases.Case(6, 6, 16, 3, torch.float32, True, 6).inputs(seed=2)
    head = inputs["head"]
    logits = inputs["hidden"][inputs["rows"].long()] @ head.weight.T + head.bias
    for good_index in range(3):
        scores = step_score(**{**inputs, "head": head._replace(good_index=good_index)}, impl=impl)
        torch.testing.assert_close(scores, logits.softmax(-1)[:, good_index])
    without = step_score(**{**inputs, "head": head._replace(bias=None)}, impl=impl)
    assert (without - step_score(**inputs, impl=impl)).abs().max() > 1e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_independent(dtype, isa):
    n = 300  # enough work for two threads
    inputs = cases.Case(n, n, 257, 2, dtype, True, n).inputs(seed=3)
    inputs["rows"] = inputs["slot"] = torch.arange(n, dtype=torch.int32)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        scores = step_score(**inputs, isa=isa)
        torch.set_num_threads(1)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).int()
        for chosen in (inputs["rows"], order, order[:1]):
            part = {"rows": chosen, "slot": chosen, "state": torch.zeros(n, 4)}
            part["counts"] = torch.zeros(n, dtype=torch.int32)
            again = step_score(**{**inputs, **part}, isa=isa)
            assert torch.equal(again, scores[chosen.long()])
            assert torch.equal(part["state"][chosen.long()], inputs["state"][chosen.long()])
    finally:
        torch.set_num_threads(num_threads)


def test_no_scores():
    inputs = cases.Case(4, 0, 16, 2, torch.float32, True, 3).inputs()
    assert step_score(**inputs).shape == (0,)
    assert inputs["counts"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_out_of_range_changes_nothing(impl):
    for name, value, limit in (("rows", 4, 4), ("rows", -1, 4), ("slot", 3, 3), ("slot", -1, 3)):
        inputs = cases.Case(4, 5, 16, 2, torch.float32, True, 3).inputs()
        inputs[name][2] = value
        with pytest.raises(ValueError, match=rf"step_score: {name}\[2\] is {value}, .* \[0, {limit}\)"):
            step_score(**inputs, impl=impl)
        assert inputs["counts"].sum() == 0
    inputs = cases.tiny()[6].inputs()
    with pytest.raises(ValueError, match=r"good_index .* got 2"):
        step_score(**{**inputs, "head": inputs["head"]._replace(good_index=2)}, impl=impl)


def test_wrong_arguments():
    good = cases.Case(4, 5, 16, 2, torch.float32, True, 3).inputs()
    wrong = {
        "hidden": good["hidden"].double(),
        "rows": good["rows"].long(),
        "state": torch.zeros(3, 5),
        "counts": torch.zeros(4, dtype=torch.int32),
        "slot": good["slot"][:4],
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"step_score: {name} must be .* got \("):
            step_score(**{**good, name: value})
    for name, value in {"weight": good["head"].weight.bfloat16(), "bias": torch.zeros(3)}.items():
        with pytest.raises(ValueError, match=rf"step_score: {name} must be .* got \("):
            step_score(**{**good, "head": good["head"]._replace(**{name: value})})
    with pytest.raises(ValueError, match=r"impl must be .* got 'fast'"):
        step_score(**good, impl="fast")
