"""The CUDA kernels against their definitions, by emulation: the sources that nvcc compiles, run thread for thread."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from ttc_kernels import kv_cache
from ttc_kernels.copy_blocks import cases as copy_cases
from ttc_kernels.copy_blocks import reference as copy_reference
from ttc_kernels.copy_blocks.cuda import copy_blocks
from ttc_kernels.rms_norm.reference import rms_norm
from ttc_kernels.sample import reference as sample_reference
from ttc_kernels.sample.cuda import STEP_ENDS, TEXT_ENDS, Stops, sample_head
from ttc_kernels.step_score import cases as score_cases
from ttc_kernels.step_score import reference as score_reference
from ttc_kernels.step_score.cuda import step_score

HALF, BF16 = torch.float16, torch.bfloat16


@pytest.fixture(scope="module")
def lib(emulated):
    return emulated


@pytest.mark.parametrize(("kind", "is_caught"), [(0, False), (1, True), (2, True), (3, True)])
def test_the_emulator_shows_faults(lib, kind, is_caught):
    """A missing barrier, a missing wait, and a barrier that one thread never reaches."""
    function = ctypes.CDLL(lib.path).ttc_test_fault
    function.argtypes, function.restype = [ctypes.c_int64] * 3, ctypes.c_char_p
    given, got = torch.arange(256, dtype=torch.int32), torch.full((256,), -1, dtype=torch.int32)
    error = function(kind, given.data_ptr(), got.data_ptr())
    is_right = torch.equal(got.view(64, 4), given.view(64, 4).roll(-37, 0))
    assert (error is not None or not is_right) == is_caught
    assert (error is not None) == (kind == 3)


@pytest.mark.parametrize("dtype", [HALF, BF16], ids=["fp16", "bf16"])
def test_the_emulator_rounds_as_torch_does(lib, dtype):
    """All 16-bit values, the numbers halfway between neighbours and just beside, and what is out of range."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    values = values[values.isfinite()].sort().values
    middle = values[:-1] + (values[1:] - values[:-1]) / 2
    extremes = torch.tensor([65519.0, 65520.0, 1e30, -1e30, float("inf"), 1e-9, -1e-45])
    given = torch.cat([values, middle, middle * (1 + 2**-20), middle * (1 - 2**-20), extremes])
    got = torch.empty(len(given), dtype=torch.int16)
    function = ctypes.CDLL(lib.path).ttc_test_round
    function.argtypes, function.restype = [ctypes.c_int64] * 4, None
    function(given.data_ptr(), got.data_ptr(), len(given), dtype is BF16)
    assert torch.equal(got, given.to(dtype).view(torch.int16))


@pytest.mark.parametrize("case", [case for case in copy_cases.tiny() if case.head_dim > 2], ids=str)
def test_copy_blocks(lib, case):
    inputs = case.inputs()
    expected = [cache.clone() for cache in inputs["caches"]]
    copy_reference.copy_blocks(expected, inputs["pairs"])
    copy_blocks(**inputs, lib=lib)
    assert all(map(torch.equal, inputs["caches"], expected))


def test_copy_blocks_of_strided_layers_and_refusals(lib):
    pool = torch.arange(3 * 6 * 2 * 8).view(3, 6, 2, 8)
    pairs = torch.tensor([[3, 1], [0, 5]], dtype=torch.int32)
    expected = pool.clone()
    copy_reference.copy_blocks([expected[::2]], pairs)
    copy_blocks([pool[::2]], pairs, lib=lib)
    assert torch.equal(pool, expected)
    with pytest.raises(ValueError, match=r"strides \(96, 16, 8, 1\)"):
        copy_blocks([pool[:, :, :1]], pairs, lib=lib)
    with pytest.raises(ValueError, match="9 caches"):
        copy_blocks([pool] * 9, pairs, lib=lib)
    with pytest.raises(ValueError, match="beside 2 layers"):
        copy_blocks([*kv_cache.allocate(2, 6, 1, 16, 8), pool], pairs, lib=lib)


@pytest.mark.parametrize("case", score_cases.tiny(), ids=str)
@pytest.mark.parametrize("has_norm", [False, True])
def test_step_score(lib, case, has_norm):
    """Scores of one slot, of which there are many here, are folded in order; rows that the mask leaves out are not."""
    case = replace(case, dtype=HALF) if case.has_bias and case.dtype is BF16 else case
    inputs = case.inputs()
    mask = torch.rand(case.num_scores, generator=torch.Generator().manual_seed(3)) < 0.7
    options = {"norm_weight": 1 + inputs["head"].weight[0], "eps": 1e-6} if has_norm else {}
    hidden = rms_norm(inputs["hidden"], *options.values()) if has_norm else inputs["hidden"]
    masked = {"hidden": hidden, "rows": inputs["rows"][mask], "slot": inputs["slot"][mask]}
    state, counts = inputs["state"].clone(), inputs["counts"].clone()
    expected = score_reference.step_score(**(inputs | masked | {"state": state, "counts": counts}))
    alone = {name: inputs[name] for name in ("hidden", "rows", "head")}
    unfolded = step_score(**alone, mask=mask, **options, lib=lib)
    scores = step_score(**inputs, mask=mask, **options, lib=lib)
    torch.testing.assert_close(unfolded, scores, rtol=0, atol=0, equal_nan=True)
    tolerance = {"atol": 2e-3 if has_norm and case.dtype is not torch.float32 else 2e-6, "rtol": 0}
    torch.testing.assert_close(scores[mask], expected, **tolerance)
    assert torch.isnan(scores[~mask]).all()
    assert torch.equal(inputs["counts"], counts)
    used = counts > 0
    torch.testing.assert_close(inputs["state"][used], state[used], **tolerance)
    assert not inputs["state"][~used].any()


def test_step_score_leaves_out_what_is_out_of_range(lib):
    inputs = score_cases.Case(4, 3, 16, 2, torch.float32, True, 2).inputs()
    inputs |= {"rows": torch.tensor([0, 9, 1], dtype=torch.int32), "slot": torch.tensor([0, 1, 7], dtype=torch.int32)}
    scores = step_score(**inputs, lib=lib)
    assert torch.isnan(scores).tolist() == [False, True, True]
    assert inputs["counts"].tolist() == [1, 1]
    assert torch.isnan(inputs["state"][1]).all()
    with pytest.raises(ValueError, match=r"slot must be contiguous, \(3,\) torch.int32, got \(3,\) torch.int64"):
        step_score(**(inputs | {"slot": inputs["slot"].long()}), lib=lib)
    with pytest.raises(ValueError, match="good_index must be within"):
        step_score(**(inputs | {"head": inputs["head"]._replace(good_index=2)}), lib=lib)


def head_inputs(rows: int, size: int, vocab: int, dtype: torch.dtype, seed: int = 1) -> dict:
    """Arguments of cuda.sample_head, every fifth row greedy and others at all temperatures."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(rows, size, generator=generator).to(dtype),
        "weight": (torch.randn(vocab, size, generator=generator) * 3 / size**0.5).to(dtype),
        "keys": torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        "positions": torch.randint(2**31 - 1, (rows,), generator=generator, dtype=torch.int32),
        "temperature": torch.tensor([1.0, 0.0, 0.7, 1e-3, 1e-40])[torch.arange(rows) % 5],
    }


def reference_sample(inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    logits = (inputs["hidden"].double() @ inputs["weight"].double().T).float()
    rows = len(logits)
    off = (torch.zeros(rows, dtype=torch.int32), torch.ones(rows), torch.zeros(rows))
    return sample_reference.sample(logits, inputs["keys"], inputs["positions"], inputs["temperature"], *off)


SIZES = [(5, 24, 131, HALF), (70, 96, 300, BF16), (3, 200, 128, BF16), (1, 8, 1, HALF), (64, 64, 1000, HALF)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sample_head_draws_the_reference_tokens(lib, sizes):
    inputs = head_inputs(*sizes)
    tokens, logprobs, flags = sample_head(**inputs, lib=lib)
    expected, expected_logprobs = reference_sample(inputs)
    assert flags is None
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-4, rtol=0)


def test_sample_head_ties_bad_rows_and_strides(lib):
    inputs = head_inputs(10, 32, 400, HALF)
    inputs["weight"][150:300] = inputs["weight"][:150]  # greedy rows: the lowest index wins
    wide = torch.zeros(10, 96, dtype=HALF)
    wide[:, 32:64] = inputs["hidden"]
    wide[3, 40] = float("nan")
    wide[4, 32:64] = float("inf")
    wide[6, 33] = float("-inf")
    inputs["hidden"] = wide[:, 32:64]
    tokens, logprobs, _ = sample_head(**inputs, lib=lib)
    expected, expected_logprobs = reference_sample(inputs)
    assert expected.tolist()[3:7:3] == [-1, -1]
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-4, rtol=0, equal_nan=True)


def test_sample_head_says_where_steps_and_texts_end(lib):
    inputs = head_inputs(40, 16, 9, BF16)
    inputs["hidden"][7] = float("nan")
    generator = torch.Generator().manual_seed(2)
    ends, is_eos = torch.rand(3, 10, generator=generator) < 0.5, torch.rand(10, generator=generator) < 0.3
    ends[:, -1] = is_eos[-1] = True
    rule = torch.arange(40, dtype=torch.int32) % 3
    tokens, _, flags = sample_head(**inputs, stops=Stops(ends, rule, is_eos), lib=lib)
    expected = STEP_ENDS * ends[rule.long(), tokens.long()].int() + TEXT_ENDS * is_eos[tokens.long()].int()
    assert tokens[7] == -1
    assert torch.equal(flags.int(), expected.int())
    assert len(set(flags.tolist())) == 4


def test_sample_head_follows_the_distribution(lib):
    """Chi-square of 4,000 draws from one row of logits."""
    inputs = head_inputs(1, 16, 20, HALF)
    inputs = {k: v.expand(4000, *v.shape[1:]).contiguous() if k != "weight" else v for k, v in inputs.items()}
    inputs |= {"keys": torch.arange(4000) * (0x9E3779B97F4A7C15 - 2**64)}
    tokens, _, _ = sample_head(**inputs, lib=lib)
    p = (inputs["hidden"][0].double() @ inputs["weight"].double().T).softmax(0)
    observed = np.bincount(tokens.numpy(), minlength=20)
    expected = p.numpy() * 4000
    assert (((observed - expected) ** 2 / expected).sum()) < 43.8  # the 0.999 quantile of 19 degrees of freedom


def test_sample_head_refuses(lib):
    inputs = head_inputs(2, 16, 20, HALF)
    with pytest.raises(ValueError, match=r"hidden \(2, 12\)"):
        sample_head(**(inputs | {k: inputs[k][:, :12].contiguous() for k in ("hidden", "weight")}), lib=lib)
    with pytest.raises(ValueError, match=r"keys must be contiguous, \(2,\) torch.int64, got \(1,\)"):
        sample_head(**(inputs | {"keys": inputs["keys"][:1]}), lib=lib)
