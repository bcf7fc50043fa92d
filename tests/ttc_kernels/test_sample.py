import math

import pytest
import torch

from ttc_kernels import _native
from ttc_kernels.sample import cases, reference, sample

ISAS = _native.supported_isas()
WAYS = [{"isa": isa} for isa in ISAS] + [{"impl": "reference"}]
SPREAD = 0x9E3779B97F4A7C15 - 2**64  # an odd number: multiples of it differ in all 64 bits
FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 4},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.85, "min_p": 0.05},
]


def arguments(logits, keys=None, positions=None, **chosen) -> dict:
    """sample's arguments for (rows, vocab) logits, with the same filters in every row."""
    rows = len(logits)
    return {
        "logits": logits,
        "keys": torch.arange(rows) * SPREAD if keys is None else keys,
        "positions": torch.zeros(rows, dtype=torch.int32) if positions is None else positions,
        "temperature": torch.full((rows,), chosen.get("temperature", 1.0)),
        "top_k": torch.full((rows,), chosen.get("top_k", 0), dtype=torch.int32),
        "top_p": torch.full((rows,), chosen.get("top_p", 1.0)),
        "min_p": torch.full((rows,), chosen.get("min_p", 0.0)),
    }


def exact_distribution(logits, **chosen) -> torch.Tensor:
    """The filtered probabilities of one row (vocab,), written down independently of the reference."""
    p = (logits.double() / chosen.get("temperature", 1.0)).softmax(0)
    ranking = sorted(range(len(p)), key=lambda v: (-float(logits[v]), v))
    ranking = ranking[: chosen.get("top_k", 0) or None]
    total, mass, kept = float(p[ranking].sum()), 0.0, []
    for v in ranking:
        kept.append(v)
        mass += float(p[v])
        if mass >= chosen.get("top_p", 1.0) * total:
            break
    kept = [v for v in kept if p[v] >= chosen.get("min_p", 0.0) * p.max()]
    exact = torch.zeros_like(p)
    exact[kept] = p[kept]
    return exact / exact.sum()


def assert_agrees(inputs: dict, isa: str = "auto", impl: str = "native") -> int:
    """A kernel against the reference: the same token unless the two best are close; how many rows differ."""
    tokens, logprobs = sample(**inputs, impl=impl, isa=isa)
    expected, expected_logprobs = sample(**inputs, impl="reference")
    differs = tokens != expected
    if differs.any():
        scale = inputs["temperature"].double()[:, None]
        z = inputs["logits"].double() / scale
        perturbed = z + reference.gumbel(inputs["keys"], inputs["positions"], z.shape[1])
        both = perturbed.gather(1, torch.stack([tokens, expected], 1).long())[differs]
        assert (both[:, 0] - both[:, 1]).abs().max() < 1e-5
    torch.testing.assert_close(logprobs[~differs], expected_logprobs[~differs], atol=1e-5, rtol=0, equal_nan=True)
    return int(differs.sum())


def test_philox_known_answers():
    """The vectors that Random123 ships for philox4x32-10."""
    vectors = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, answer in vectors:
        words = reference.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
        assert [int(word) for word in words] == answer


@pytest.mark.parametrize("isa", ISAS)
def test_native_noise(isa):
    first = torch.empty(4)
    _native.sample_noise(0, 0, first.data_ptr(), 4, isa)
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    known = [-math.log(-math.log(((word >> 8) + 0.5) / 2**24)) for word in words]
    torch.testing.assert_close(first, torch.tensor(known), atol=1e-6, rtol=0)
    for key, position in ((1, 0), (2**63 + 12345, 7), (2**64 - 1, 2**31 - 1), (2**32, 1), (0xDEADBEEF, 4096)):
        noise = torch.empty(20_011)
        _native.sample_noise(key, position, noise.data_ptr(), len(noise), isa)
        signed = key - 2**64 if key >= 2**63 else key
        exact = reference.gumbel(torch.tensor([signed]), torch.tensor([position]), len(noise))[0]
        torch.testing.assert_close(noise.double(), exact, atol=2e-6, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", cases.tiny(), ids=str)
def test_native_agrees_with_reference(case, isa):
    assert_agrees(case.inputs(seed=case.vocab), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("chosen", FILTERS, ids=str)
def test_many_rows_and_ties_agree(chosen, isa):
    """Whole-number logits: most filters then cut through a group of ties. Few rows may fall within 1e-5."""
    generator = torch.Generator().manual_seed(5)
    num_unclear = 0
    for vocab, rows in ((6, 300), (25, 300), (70, 100), (3000, 20)):
        logits = torch.randn(rows, vocab, generator=generator).mul(2).round()
        logits[:, ::5] *= -1.0  # makes some zeros negative
        num_unclear += assert_agrees(arguments(logits, **chosen), isa)
    assert num_unclear <= 1


@pytest.mark.parametrize("isa", ISAS)
def test_large_vocabulary_agrees(isa):
    generator = torch.Generator().manual_seed(6)
    rows = 7
    logits = 3 * torch.randn(rows, 40_003, generator=generator)
    logits[0, 40_002] = 40.0  # peaked: nearly every token is out before its noise is made
    logits[1] = 0.0  # flat
    inputs = arguments(logits)
    inputs["top_k"] = torch.tensor([0, 0, 50, 0, 0, 30_000, 39_000], dtype=torch.int32)
    inputs["top_p"] = torch.tensor([1.0, 0.5, 0.9, 0.95, 1.0, 0.999, 1.0])
    inputs["min_p"] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.01, 0.0, 0.0])
    assert assert_agrees(inputs, isa) == 0


@pytest.mark.parametrize("by", ["key", "position"])
@pytest.mark.parametrize("chosen", FILTERS, ids=str)
def test_draws_follow_the_exact_distribution(chosen, by):
    num_draws, vocab = 200_000, 25
    logits = 1.5 * torch.randn(vocab, generator=torch.Generator().manual_seed(11))
    exact = exact_distribution(logits, **chosen)
    inputs = arguments(logits.expand(num_draws, vocab), **chosen)
    if by == "position":
        inputs["keys"] = torch.full((num_draws,), -1234567890123456789)
        inputs["positions"] = torch.arange(num_draws, dtype=torch.int32)
    tokens, logprobs = sample(**inputs)
    counts = tokens.long().bincount(minlength=vocab).double()
    assert counts[exact == 0].sum() == 0  # no banned token
    expected = exact * num_draws
    is_kept = exact > 0
    statistic = ((counts - expected)[is_kept] ** 2 / expected[is_kept]).sum()
    freedom = int(is_kept.sum()) - 1
    p_value = torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), statistic / 2)
    assert p_value > 1e-3, (float(statistic), freedom)
    log_softmax = (logits.double() / chosen.get("temperature", 1.0)).log_softmax(0)
    torch.testing.assert_close(logprobs.double(), log_softmax[tokens.long()], atol=1e-5, rtol=0)


def test_every_filter_changes_what_can_be_drawn():
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0]).expand(4000, 5)
    drawn = {name: set() for name in ("all", "top_k", "top_p", "min_p", "greedy")}
    chosen = ({}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.3}, {"temperature": 0.0})
    for name, options in zip(drawn, chosen, strict=True):
        drawn[name] = set(sample(**arguments(logits, **options))[0].tolist())
    # Probabilities 0.52 0.19 0.19 0.07 0.03: top-k's tie goes to index 1; 0.8 takes three; 0.3 * 0.52 < 0.19.
    assert drawn == {
        "all": {0, 1, 2, 3, 4},
        "top_k": {0, 1},
        "top_p": {0, 1, 2},
        "min_p": {0, 1, 2},
        "greedy": {0},
    }


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_depend_on_the_batch(isa):
    generator = torch.Generator().manual_seed(3)
    rows, vocab = 64, 1031  # enough work for two threads
    inputs = arguments(2 * torch.randn(rows, vocab, generator=generator), top_p=0.9, top_k=300)
    inputs["positions"] = torch.arange(rows, dtype=torch.int32)
    inputs["top_k"][::2], inputs["top_p"][::3] = 0, 1.0
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        tokens, logprobs = sample(**inputs, isa=isa)
        torch.set_num_threads(1)
        order = torch.randperm(rows, generator=generator)
        for chosen in (torch.arange(rows), order, *order[:8].split(1)):
            part = {name: value[chosen] for name, value in inputs.items()}
            again, again_logprobs = sample(**part, isa=isa)
            assert torch.equal(again, tokens[chosen])
            assert torch.equal(again_logprobs, logprobs[chosen])
    finally:
        torch.set_num_threads(num_threads)
    wide = torch.full((rows, vocab + 13), torch.nan)
    wide[:, :vocab] = inputs["logits"]
    strided, _ = sample(**{**inputs, "logits": wide[:, :vocab]}, isa=isa)
    assert torch.equal(strided, tokens)


def test_key_and_position_both_matter():
    logits = torch.zeros(500, 40)
    base, _ = sample(**arguments(logits))
    keyed, _ = sample(**arguments(logits, keys=torch.arange(500) + 10**12))
    placed, _ = sample(**arguments(logits, positions=torch.ones(500, dtype=torch.int32)))
    high, _ = sample(**arguments(logits, keys=torch.arange(500) * SPREAD + 2**40))
    for other in (keyed, placed, high):
        assert 0 < (base == other).sum() < 60  # 1 in 40 by chance


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocab", [1, 5, 40, 300])
def test_bad_rows_are_flagged_and_others_unchanged(vocab, temperature, way):
    logits = torch.randn(9, vocab, generator=torch.Generator().manual_seed(vocab))
    inputs = arguments(logits.clone(), temperature=temperature)
    tokens, logprobs = sample(**inputs, **way)
    inputs["logits"][1, vocab // 2] = torch.nan
    inputs["logits"][4, vocab - 1] = torch.inf
    inputs["logits"][6] = -torch.inf
    inputs["logits"][8, 0] = torch.inf
    inputs["logits"][8, -1] = torch.nan
    flagged, flagged_logprobs = sample(**inputs, **way)
    is_bad = torch.zeros(9, dtype=torch.bool)
    is_bad[[1, 4, 6, 8]] = True
    assert (flagged[is_bad] == -1).all()
    assert flagged_logprobs[is_bad].isnan().all()
    assert torch.equal(flagged[~is_bad], tokens[~is_bad])
    assert torch.equal(flagged_logprobs[~is_bad], logprobs[~is_bad])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_minus_infinity_is_never_drawn(way):
    logits = torch.full((2000, 50), -torch.inf)
    logits[:, 17], logits[:, 42] = 0.0, -1.0
    for options in ({}, {"top_k": 5}, {"top_p": 0.999}, {"temperature": 0.0}, {"temperature": 50.0}):
        tokens, logprobs = sample(**arguments(logits, **options), **way)
        assert set(tokens.tolist()) <= {17, 42}
        assert logprobs.isfinite().all()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_greedy_takes_the_first_of_equals(way):
    logits = torch.zeros(4, 100)
    logits[0, [97, 30, 31]] = 5.0
    logits[1] = -2.0
    logits[2, 0] = -1.0
    logits[3], logits[3, 3], logits[3, 4] = -1.0, -0.0, 0.0
    tokens, logprobs = sample(**arguments(logits, temperature=0.0, top_k=1, top_p=0.1), **way)
    assert tokens.tolist() == [30, 0, 1, 3]
    exact = logits.double().log_softmax(-1).gather(1, tokens.long()[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_temperatures_and_logits(isa):
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(50, 90, generator=generator)
    best = logits.argmax(-1).int()
    for temperature in (1e-3 / 50, 1e-30, 1e-42):
        for options in ({}, {"top_p": 0.9}, {"min_p": 0.5}, {"top_k": 3}):
            tokens, logprobs = sample(**arguments(logits, temperature=temperature, **options), isa=isa)
            assert torch.equal(tokens, best)
            assert (logprobs.abs() < 1e-3).all()
    far = logits + 1e6
    assert_agrees(arguments(far), isa)
    assert_agrees(arguments(logits * 1e6), isa)
    assert_agrees(arguments(logits, temperature=1e6), isa)
    assert_agrees(arguments(logits, top_p=1e-6), isa)
    assert_agrees(arguments(logits, top_p=1 - 1e-7), isa)


def test_logprob_against_float64():
    for vocab in (25, 5003):
        logits = 4 * torch.randn(64, vocab, generator=torch.Generator().manual_seed(vocab))
        for temperature in (0.3, 1.0, 2.0):
            tokens, logprobs = sample(**arguments(logits, temperature=temperature, top_k=20))
            exact = (logits.double() / temperature).log_softmax(-1).gather(1, tokens.long()[:, None])[:, 0]
            torch.testing.assert_close(logprobs.double(), exact, atol=1e-5, rtol=0)


def test_no_rows():
    tokens, logprobs = sample(**arguments(torch.empty(0, 25)))
    assert tokens.shape == logprobs.shape == (0,)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("temperature", -0.5, "-0.5"),
        ("temperature", float("nan"), "nan"),
        ("temperature", float("inf"), "inf"),
        ("top_k", -3, "-3"),
        ("top_p", 0.0, "0"),
        ("top_p", 1.5, "1.5"),
        ("min_p", -0.1, "-0.1"),
        ("min_p", 2.0, "2"),
        ("positions", -7, "-7"),
    ],
)
def test_a_wrong_value_is_shown(name, value, shown, impl):
    inputs = arguments(torch.zeros(3, 8))
    inputs[name][1] = value
    with pytest.raises(ValueError, match=rf"sample: {name}\[1\] must be .*, got {shown}"):
        sample(**inputs, impl=impl)


def test_wrong_shapes_and_types():
    good = arguments(torch.zeros(3, 8))
    wrong = {
        "logits": torch.zeros(3, 8, dtype=torch.bfloat16),
        "keys": torch.zeros(3, dtype=torch.int32),
        "positions": torch.zeros(4, dtype=torch.int32),
        "temperature": torch.zeros(3).double(),
        "top_k": torch.zeros(3, dtype=torch.int64),
        "top_p": torch.ones(6)[::2],
        "min_p": torch.zeros(3, 1),
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"sample: {name} must be .* got \("):
            sample(**{**good, name: value})
    with pytest.raises(ValueError, match="sample: logits"):
        sample(**{**good, "logits": torch.zeros(3, 0)})
    with pytest.raises(ValueError, match=r"impl must be .* got 'gpu'"):
        sample(**good, impl="gpu")
    with pytest.raises(ValueError, match="mmx"):
        sample(**good, isa="mmx")
