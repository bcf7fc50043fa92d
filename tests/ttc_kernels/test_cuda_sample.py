"""Sampling from logits in CUDA, by emulation, against its definition in float64; and where exactly each filter cuts."""

import ctypes
import math
import time
from dataclasses import replace

import pytest
import torch

from tests.ttc_kernels.test_sample import FILTERS, arguments
from ttc_kernels.sample import cases, cuda, reference, sample
from ttc_kernels.sample.reference import RowSampling

VOCAB = 151_936  # of Qwen2.5


def draw(lib, inputs: dict, **options) -> tuple[torch.Tensor, torch.Tensor]:
    rest = dict(inputs)
    return cuda.sample(rest.pop("logits"), RowSampling(**rest), lib=lib, **options)


def assert_agrees(lib, inputs: dict, **options) -> None:
    tokens, logprobs = draw(lib, inputs, **options)
    expected, expected_logprobs = reference.sample(**inputs)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=1e-5, equal_nan=True)


def reseed(lib, seed: int) -> None:
    function = ctypes.CDLL(lib.path).ttc_test_seed
    function.argtypes = [ctypes.c_int64]
    function(seed)


@pytest.mark.parametrize(
    "case", [replace(case, num_rows=2) for case in cases.tiny() if case.vocab in (1, 33, 1000)], ids=str
)
def test_agrees_with_the_reference(emulated, case):
    assert_agrees(emulated, case.inputs(seed=case.vocab), num_parts=1 + case.vocab % 4)


@pytest.mark.parametrize("chosen", FILTERS, ids=str)
def test_ties_agree(emulated, chosen):
    """Logits as a bfloat16 product leaves them, some of them zeros of either sign."""
    logits = torch.randn(4, 70, generator=torch.Generator().manual_seed(5)).mul(2).round()
    logits[:, ::5] *= -1.0
    logits[2:] = torch.randn(2, 70, generator=torch.Generator().manual_seed(6)).bfloat16().float()
    assert_agrees(emulated, arguments(logits, **chosen))


def keys_at_the_cut(logits: torch.Tensor, **chosen: float) -> list[int]:
    """Keys that draw the last token that the filters keep, and that would draw the first one that they drop."""
    row = arguments(logits[None], **chosen)
    kept = reference.keep(logits[None].double(), *(row[name][:, None] for name in list(row)[3:]))[0]
    ranking = logits.sort(descending=True, stable=True).indices
    num_kept = int(kept.sum())
    keys = torch.arange(6000) * 0x2545F4914F6CDD1D
    noise = reference.gumbel(keys, torch.zeros(6000, dtype=torch.int32), len(logits))
    score = logits.double() / chosen.get("temperature", 1.0) + noise
    found = []
    for num, wanted in ((num_kept, ranking[num_kept - 1]), (num_kept + 1, ranking[min(num_kept, len(logits) - 1)])):
        is_out = torch.ones(len(logits), dtype=torch.bool)
        is_out[ranking[:num]] = False
        winners = score.masked_fill(is_out, -torch.inf).argmax(-1)
        found += keys[winners == wanted][:1].tolist()
    assert len(found) == 2
    return found


GENERATOR = torch.Generator().manual_seed(9)
ROWS = {
    "distinct": torch.randn(90, generator=GENERATOR),
    "flat": torch.full((61,), -3.0),
    "tied": torch.randn(83, generator=GENERATOR).round(),
    "tiny": 1e-38 * torch.randn(50, generator=GENERATOR),
    "far": 1e6 + torch.randn(70, generator=GENERATOR),
    "masked": torch.where(torch.rand(90, generator=GENERATOR) < 0.5, -torch.inf, torch.zeros(90)),
}
CUTS = [
    {"top_k": 17},
    {"top_p": 0.5},
    {"min_p": 0.3},
    {"top_k": 31, "top_p": 0.6},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.9, "min_p": 0.5},
]


@pytest.mark.parametrize("chosen", CUTS, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_every_filter_cuts_where_the_reference_does(emulated, name, chosen):
    logits = ROWS[name]
    if set(chosen) == {"min_p"} and name in ("flat", "tiny", "masked"):
        chosen = chosen | {"top_k": 5}  # alone it drops nothing there
    keys = torch.tensor(keys_at_the_cut(logits, **chosen))
    assert_agrees(emulated, arguments(logits.repeat(2, 1), keys=keys, **chosen), num_parts=2)


@pytest.mark.parametrize("is_half", [False, True])
def test_a_large_vocabulary_shared_by_blocks(emulated, is_half):
    """As many blocks as one row is given on a GPU; rounded logits end in groups of ties."""
    logits = 3 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(7))
    logits = logits.bfloat16().float() if is_half else logits
    assert_agrees(emulated, arguments(logits, temperature=0.9, top_k=4000, top_p=0.95))


def test_a_row_s_bits_do_not_depend_on_parts_order_or_other_rows(emulated):
    logits = torch.randn(3, 5001, generator=torch.Generator().manual_seed(3)).mul(4).bfloat16().float()
    for chosen in ({"top_k": 300, "top_p": 0.9}, {"top_p": 0.99, "min_p": 1e-3}):
        inputs = arguments(logits, **chosen)
        together = draw(emulated, inputs, num_parts=1)
        alone = {name: x[1:2] for name, x in inputs.items()}
        try:
            for seed, num_parts in ((0, 1), (1, 2), (2, 3), (3, 7), (4, 7), (5, 11)):
                reseed(emulated, seed)
                for all_rows, one in zip(together, draw(emulated, alone, num_parts=num_parts), strict=True):
                    assert torch.equal(all_rows[1:2], one)
        finally:
            reseed(emulated, 0)


def test_extremes(emulated):
    logits = torch.randn(2, 90, generator=torch.Generator().manual_seed(8))
    for chosen in ({"top_p": 1e-6}, {"top_p": 1 - 1e-7}, {"top_k": 1}, {"top_k": 90}, {"top_k": 10**9, "min_p": 1.0}):
        assert_agrees(emulated, arguments(logits, **chosen))
    for temperature in (1e-3 / 50, 1e-42, 1e6):
        assert_agrees(emulated, arguments(logits, temperature=temperature, top_p=0.9, top_k=30))
    assert_agrees(emulated, arguments(logits * 1e6, min_p=0.1))


def test_bad_rows_and_wrong_values_are_flagged_alone(emulated):
    logits = torch.randn(10, 40, generator=torch.Generator().manual_seed(1))
    logits[1, 20], logits[4, 39], logits[6], logits[8, :39] = torch.nan, torch.inf, -torch.inf, -torch.inf
    inputs = arguments(logits, top_k=7, top_p=0.9)
    assert_agrees(emulated, inputs, num_parts=2)
    inputs["temperature"][0], inputs["temperature"][2], inputs["top_k"][3] = -0.5, math.inf, -3
    inputs["top_p"][5], inputs["min_p"][7], inputs["positions"][9] = 1.5, math.nan, -7
    tokens, logprobs = draw(emulated, inputs)
    assert (tokens != -1).nonzero().flatten().tolist() == logprobs.isfinite().nonzero().flatten().tolist() == [8]


def test_strided_rows_that_begin_anywhere_and_no_rows(emulated):
    wide = torch.full((3, 51), torch.nan)
    wide[:, 1:42] = torch.randn(3, 41, generator=torch.Generator().manual_seed(2))
    assert_agrees(emulated, arguments(wide[:, 1:42], top_k=9))
    assert [len(x) for x in draw(emulated, arguments(torch.empty(0, 25)))] == [0, 0]


def test_six_launches_whatever_is_filtered(emulated):
    num_launches = ctypes.CDLL(emulated.path).ttc_test_num_launches
    num_launches.restype = ctypes.c_int64
    before = num_launches()
    draw(emulated, arguments(torch.zeros(1, 30), top_k=3, top_p=0.5))
    assert num_launches() - before == 6


def test_a_request_for_cuda_gets_it(emulated, monkeypatch):
    inputs = arguments(torch.randn(2, 50, generator=torch.Generator().manual_seed(4)), top_p=0.7)
    monkeypatch.setattr(cuda, "library", lambda: emulated)
    for ours, theirs in zip(sample(**inputs, impl="cuda"), draw(emulated, inputs), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"takes up to 1048575 tokens, got logits \(1, 1048576\)"):
        sample(**arguments(torch.zeros(1, 2**20)), impl="cuda")


def test_the_largest_vocabulary_may_be_flat(emulated):
    """Every token has the largest mass: one more, and their sum would begin again at zero."""
    num = cuda.MAX_VOCAB
    tokens, logprobs = draw(emulated, arguments(torch.zeros(1, num), top_p=1e-6), num_parts=4)
    assert 0 <= tokens.item() <= math.ceil(1e-6 * num)
    assert logprobs.item() == pytest.approx(-math.log(num))


def test_min_p_that_cuts_next_to_zero(emulated):
    """The cut is at 0 up to the rounding of the highest logit, within which lie 700 million floats."""
    least, temperature, top = 0.19051074981689453, 0.185516357421875, 0.30759477615356445
    assert top + math.log(least) * temperature == 0
    logits = torch.tensor([[top, 0.0, -1e-20, 1e-14, -1e-14, -3.0]])
    start = time.process_time()
    assert_agrees(emulated, arguments(logits, min_p=least, temperature=temperature))
    assert time.process_time() - start < 1
