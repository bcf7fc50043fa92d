"""sample in Triton's interpreter, against its definition: the generator bit for bit, then tokens and filters."""

import math
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from tests.ttc_kernels.interpreter import DTYPES
from tests.ttc_kernels.test_sample import FILTERS, arguments, assert_agrees
from ttc_kernels.sample import cases, reference, sample
from ttc_kernels.sample.triton import _exponential, _random_bits, _rank, _unrank

assert torch.float32 in DTYPES  # sample's one type; the import has made sure of the interpreter


@triton.jit
def _store_bits(key_ptr, position_ptr, out_ptr, start, BLOCK: tl.constexpr):
    bits = _random_bits(tl.load(key_ptr), tl.load(position_ptr), start, BLOCK)
    tl.store(out_ptr + tl.arange(0, BLOCK), bits.to(tl.int32, bitcast=True))


@triton.jit
def _store_exponential(bits_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, _exponential(tl.load(bits_ptr + at).to(tl.uint32, bitcast=True)))


@triton.jit
def _store_ranks(x_ptr, rank_ptr, back_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    rank = _rank(tl.load(x_ptr + at))
    tl.store(rank_ptr + at, rank)
    tl.store(back_ptr + at, _unrank(rank))


def random_bits(key: int, position: int, start: int, num: int) -> list[int]:
    out = torch.empty(num, dtype=torch.int32)
    signed = key - 2**64 if key >= 2**63 else key
    _store_bits[(1,)](torch.tensor([signed]), torch.tensor([position], dtype=torch.int32), out, start, BLOCK=num)
    return [word & 0xFFFFFFFF for word in out.tolist()]


def test_random_bits_are_the_reference_s():
    assert random_bits(0, 0, 0, 16)[:4] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    for key, position, start in ((2**63 + 12345, 7, 0), (2**64 - 1, 2**31 - 1, 64), (2**32, 1, 151_808)):
        counter = [torch.tensor(position), torch.arange(start // 4, start // 4 + 16), torch.tensor(0), torch.tensor(0)]
        words = reference.philox(counter, [torch.tensor(key & 0xFFFFFFFF), torch.tensor(key >> 32)])
        expected = torch.stack(torch.broadcast_tensors(*words), -1).flatten().tolist()
        assert random_bits(key, position, start, 64) == expected


def test_exponential_is_accurate_at_both_ends():
    words = [
        0,
        255,
        256,
        1 << 30,
        (1 << 31) - 1,
        1 << 31,
        (1 << 31) + 256,
        3 << 30,
        2**32 - 512,
        2**32 - 256,
        2**32 - 1,
    ]
    words += [(0x9E3779B9 * i) % 2**32 for i in range(64 - len(words))]
    bits = torch.tensor([w - 2**32 if w >= 2**31 else w for w in words], dtype=torch.int32)
    out = torch.empty(64)
    _store_exponential[(1,)](bits, out, BLOCK=64)
    exact = [-math.log(((w >> 8) + 0.5) * 2.0**-24) for w in words]
    torch.testing.assert_close(out.double(), torch.tensor(exact).double(), rtol=1e-6, atol=0)


def test_ranks_order_as_floats_do():
    values = [-math.inf, -3.4e38, -2.5, -1.0, -1e-38, -1e-45, 0.0, 1e-45, 1e-38, 0.1, 1.0, 1.0000001, 2.5, 7e9, 3.4e38]
    x = torch.tensor([*values, -0.0])
    ranks, back = torch.empty(16, dtype=torch.int32), torch.empty(16)
    _store_ranks[(1,)](x, ranks, back, BLOCK=16)
    assert ranks.tolist()[:15] == sorted(set(ranks.tolist()))
    assert ranks[15] == ranks[6] == 0
    assert torch.equal(back, x)


EDGES = (1, 32, 33, 1000)  # of vocabularies; between them nothing else happens


@pytest.mark.parametrize("case", [replace(case, num_rows=2) for case in cases.tiny() if case.vocab in EDGES], ids=str)
def test_agrees_with_reference(case):
    assert assert_agrees(case.inputs(seed=case.vocab), impl="triton") == 0


@pytest.mark.parametrize("chosen", FILTERS, ids=str)
def test_ties_agree(chosen):
    """Whole-number logits: most filters then cut through a group of ties."""
    generator = torch.Generator().manual_seed(5)
    for vocab, rows in ((6, 3), (25, 3), (70, 2)):
        logits = torch.randn(rows, vocab, generator=generator).mul(2).round()
        logits[:, ::5] *= -1.0  # makes some zeros negative
        assert assert_agrees(arguments(logits, **chosen), impl="triton") == 0


def test_a_vocabulary_of_several_blocks_agrees():
    generator = torch.Generator().manual_seed(6)
    logits = 3 * torch.randn(6, 4999, generator=generator)
    logits[0, 4998] = 40.0
    logits[1] = 0.0  # flat: a cut through ties far behind the first block
    inputs = arguments(logits)
    inputs["top_k"] = torch.tensor([0, 0, 50, 4000, 4999, 0], dtype=torch.int32)
    inputs["top_p"] = torch.tensor([1.0, 0.5, 0.9, 0.999, 1.0, 1.0])
    inputs["min_p"] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.01])
    assert assert_agrees(inputs, impl="triton") == 0


def test_every_filter_changes_what_can_be_drawn():
    """Probabilities 0.52 0.19 0.19 0.07 0.03: top-k's tie goes to index 1; 0.8 takes three; 0.3 * 0.52 < 0.19."""
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0]).expand(10, 5)
    unfiltered, _ = sample(**arguments(logits), impl="triton")
    allowed = (
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"temperature": 0.0}, {0}),
    )
    for options, tokens in allowed:
        assert not set(unfiltered.tolist()) <= tokens
        assert set(sample(**arguments(logits, **options), impl="triton")[0].tolist()) == tokens


def test_extreme_temperatures_and_logits():
    logits = torch.randn(2, 90, generator=torch.Generator().manual_seed(8))
    best = logits.argmax(-1).int()
    for temperature in (1e-3 / 50, 1e-30, 1e-42):
        for options in ({}, {"top_p": 0.9, "min_p": 0.5, "top_k": 3}):
            tokens, logprobs = sample(**arguments(logits, temperature=temperature, **options), impl="triton")
            assert torch.equal(tokens, best)
            assert (logprobs.abs() < 1e-3).all()
    assert_agrees(arguments(logits + 1e6, top_p=0.9), impl="triton")
    assert_agrees(arguments(logits * 1e6, min_p=0.1), impl="triton")
    assert_agrees(arguments(logits, temperature=1e6), impl="triton")
    assert_agrees(arguments(logits, top_p=1e-6), impl="triton")
    assert_agrees(arguments(logits, top_p=1 - 1e-7), impl="triton")


def test_bad_rows_are_flagged_and_others_unchanged():
    logits = torch.randn(9, 40, generator=torch.Generator().manual_seed(1))
    for temperature in (0.0, 1.0):
        inputs = arguments(logits.clone(), temperature=temperature)
        tokens, logprobs = sample(**inputs, impl="triton")
        inputs["logits"][1, 20], inputs["logits"][4, 39], inputs["logits"][6] = torch.nan, torch.inf, -torch.inf
        inputs["logits"][8, 0], inputs["logits"][8, -1] = torch.inf, torch.nan
        flagged, flagged_logprobs = sample(**inputs, impl="triton")
        is_bad = torch.zeros(9, dtype=torch.bool)
        is_bad[[1, 4, 6, 8]] = True
        assert (flagged[is_bad] == -1).all()
        assert flagged_logprobs[is_bad].isnan().all()
        assert torch.equal(flagged[~is_bad], tokens[~is_bad])
        assert torch.equal(flagged_logprobs[~is_bad], logprobs[~is_bad])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -3),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("positions", -7),
    ],
)
def test_a_wrong_value_flags_its_row(name, value):
    """Where the native kernel raises, an exception would have to wait for the GPU."""
    inputs = arguments(torch.zeros(3, 8))
    inputs[name][1] = value
    tokens, logprobs = sample(**inputs, impl="triton")
    assert (tokens == -1).tolist() == [False, True, False]
    assert logprobs.isnan().tolist() == [False, True, False]


def test_minus_infinity_and_greedy_ties():
    logits = torch.full((3, 50), -torch.inf)
    logits[:, 17], logits[:, 42] = 0.0, -1.0
    for options in ({"top_k": 5}, {"top_p": 0.999}, {"temperature": 0.0}, {"temperature": 50.0}):
        tokens, logprobs = sample(**arguments(logits, **options), impl="triton")
        assert set(tokens.tolist()) <= {17, 42}
        assert logprobs.isfinite().all()
    logits = torch.full((2, 100), -1.0)
    logits[0, [97, 30, 31]] = 5.0
    logits[1, 3], logits[1, 4] = -0.0, 0.0
    tokens, _ = sample(**arguments(logits, temperature=0.0, top_k=1, top_p=0.1), impl="triton")
    assert tokens.tolist() == [30, 3]


def test_strided_rows_key_position_and_no_rows():
    wide = torch.full((6, 45), torch.nan)
    wide[:, :40] = 0.0
    flat, _ = sample(**arguments(wide[:, :40]), impl="triton")
    assert torch.equal(flat, sample(**arguments(torch.zeros(6, 40)), impl="triton")[0])
    keyed, _ = sample(**arguments(torch.zeros(6, 40), keys=torch.arange(6) + 10**12), impl="triton")
    placed, _ = sample(**arguments(torch.zeros(6, 40), positions=torch.ones(6, dtype=torch.int32)), impl="triton")
    assert (flat == keyed).sum() < 3
    assert (flat == placed).sum() < 3
    tokens, logprobs = sample(**arguments(torch.empty(0, 25)), impl="triton")
    assert tokens.shape == logprobs.shape == (0,)
