import dataclasses

import numpy as np
import pytest
import torch

from ttc_kernels import _native, kv_cache
from ttc_kernels.decoder import DecoderWeights, LayerWeights, PackedDecoder, PackedLinear, cases, decoder, reference
from ttc_kernels.testing import assert_within_budget, poisoned

ISAS = _native.decoder_isas()
DTYPES = (torch.float32, torch.bfloat16)
HOME = cases.Case(2, 96, 256, 6, 2, 16, torch.float32, ((1, 20), (2, 5)))


def widened(weights: DecoderWeights) -> DecoderWeights:
    layers = tuple(LayerWeights(*(tensor.double() for tensor in vars(layer).values())) for layer in weights.layers)
    changed = {name: getattr(weights, name).double() for name in ("embedding", "final_norm", "cos", "sin")}
    return dataclasses.replace(weights, layers=layers, **changed)


def wide_inputs(inputs: dict) -> dict:
    return {**inputs, "k_cache": inputs["k_cache"].double(), "v_cache": inputs["v_cache"].double()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", cases.tiny(), ids=str)
def test_error_budget(case, isa):
    """Hidden states, and every slot of the caches."""
    weights = case.weights()
    native, plain, exact = case.inputs(), case.inputs(), wide_inputs(case.inputs())
    rows = len(native["token_ids"])
    out = poisoned(rows, case.hidden, dtype=case.dtype)
    assert PackedDecoder(weights, isa=isa).forward(**native, out=out) is out
    want, low = reference.decoder(widened(weights), **exact), reference.decoder(weights, **plain)
    assert_within_budget(out, want, low)
    for name in ("k_cache", "v_cache"):
        assert_within_budget(native[name], exact[name], plain[name])


def test_one_call():
    """`decoder` packs and runs; the reference can be asked for."""
    weights = HOME.weights()
    assert torch.equal(decoder(weights, **HOME.inputs()), PackedDecoder(weights).forward(**HOME.inputs()))
    want = reference.decoder(weights, **HOME.inputs())
    assert torch.equal(decoder(weights, **HOME.inputs(), impl="reference"), want)
    with pytest.raises(ValueError, match=r"impl must be .* got 'fast'"):
        decoder(weights, **HOME.inputs(), impl="fast")


# -- independence of rows ----------------------------------------------------------------------


class Branches:
    """Branches of different lengths over one prompt, and their keys and values."""

    def __init__(self, case: cases.Case, num_branches: int):
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, 40, num_branches).astype(np.int32)
        self.case, num_blocks = case, 4 * num_branches + 4
        self.tree = _native.KVTree(num_blocks, 16)
        root, _ = self.tree.open(np.zeros(0, np.int32))
        self.tree.extend(np.array([root], np.int32), np.array([20], np.int32), np.zeros(20, np.int32))
        self.handles = np.asarray(self.tree.fork(root, num_branches), np.int32)
        self.tree.extend(self.handles, lengths, np.zeros(lengths.sum(), np.int32))
        self.tokens = torch.from_numpy(rng.integers(0, cases.VOCABULARY, num_branches)).int()
        shape = (case.num_layers, num_blocks, case.num_kv_heads, 16, case.head_dim)
        self.k, self.v = kv_cache.allocate(*shape, case.dtype)
        generator = torch.Generator().manual_seed(1)
        self.k.copy_(torch.randn(shape, generator=generator))
        self.v.copy_(torch.randn(shape, generator=generator))

    def forward(self, trunk: PackedDecoder, chosen: np.ndarray) -> torch.Tensor:
        """Hidden states of the last token of the chosen branches, in their order."""
        plan = self.tree.plan(self.handles[chosen], np.ones(len(chosen), np.int32))
        order = torch.from_numpy(np.asarray(plan.order)).long()
        tokens = self.tokens[torch.from_numpy(chosen)][order]
        positions, slots = torch.from_numpy(plan.positions), torch.from_numpy(plan.slots)
        hidden = trunk.forward(tokens, plan, positions, slots, self.k, self.v)
        out = torch.empty_like(hidden)
        out[order] = hidden
        return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_every_batch(dtype, isa):
    case = dataclasses.replace(HOME, dtype=dtype)
    branches, trunk = Branches(case, 150), PackedDecoder(case.weights(), isa=isa)
    rng = np.random.default_rng(1)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = branches.forward(trunk, np.arange(150))
        for num in (*range(1, 28), 48, 65, 149):
            chosen = rng.permutation(150)[:num]
            torch.set_num_threads(1 + num % 2)
            assert torch.equal(branches.forward(trunk, chosen), whole[torch.from_numpy(chosen)]), num
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("isa", ISAS)
def test_wide_layers_in_long_strips(isa):
    """A layer too large for the cache goes by in longer strips: the same bits."""
    case = cases.Case(1, 256, 640, 4, 2, 32, torch.float32, ((1, 1),))
    assert case.layer_weights * 4 > 512 * 1024
    branches, trunk = Branches(case, 120), PackedDecoder(case.weights(), isa=isa)
    whole = branches.forward(trunk, np.arange(120))
    for chosen in (np.array([7]), np.arange(100, 120), np.arange(95)):
        assert torch.equal(branches.forward(trunk, chosen), whole[torch.from_numpy(chosen)])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_stays_in_its_row(dtype, isa):
    case = dataclasses.replace(HOME, dtype=dtype)
    weights, branches = case.weights(), Branches(case, 30)
    trunk = PackedDecoder(weights, isa=isa)
    branches.tokens[branches.tokens == 3] = 4
    branches.tokens[11] = 3
    clean = branches.forward(trunk, np.arange(30))
    weights.embedding[3] = torch.nan  # read where it is
    dirty = branches.forward(trunk, np.arange(30))
    assert dirty[11].isnan().all()
    others = [row for row in range(30) if row != 11]
    assert torch.equal(dirty[others], clean[others])


def test_a_slot_of_minus_one_stores_nothing():
    inputs, weights = HOME.inputs(), HOME.weights()
    before = inputs["k_cache"].clone(), inputs["v_cache"].clone()
    PackedDecoder(weights).forward(**{**inputs, "slots": torch.full_like(inputs["slots"], -1)})
    assert torch.equal(inputs["k_cache"], before[0])
    assert torch.equal(inputs["v_cache"], before[1])
    PackedDecoder(weights).forward(**inputs)
    assert (inputs["k_cache"] != before[0]).any()


def test_no_rows():
    inputs = HOME.inputs()
    empty = torch.zeros(0, dtype=torch.int32)
    tree = _native.KVTree(4, 16)
    plan = tree.plan(np.zeros(0, np.int32), np.zeros(0, np.int32))
    caches = inputs["k_cache"], inputs["v_cache"]
    assert PackedDecoder(HOME.weights()).forward(empty, plan, empty, empty, *caches).shape == (0, 96)


def test_wrong_arguments():
    weights, inputs = HOME.weights(), HOME.inputs()
    trunk = PackedDecoder(weights)

    def refused(match: str, **changed) -> None:
        with pytest.raises(ValueError, match=match):
            trunk.forward(**{**inputs, **changed})

    def with_first(name: str, value: int) -> dict:
        tensor = inputs[name].clone()
        tensor[0] = value
        return {name: tensor}

    num_slots = inputs["k_cache"].shape[1] * 16
    refused(r"token 25 of row 0 is outside 0\.\.24", **with_first("token_ids", 25))
    refused(r"position -1 of row 0 is outside 0\.\.511", **with_first("positions", -1))
    refused(rf"slot {num_slots} of row 0 is outside -1\.\.{num_slots - 1}", **with_first("slots", num_slots))
    refused(r"token_ids must be contiguous, .* torch.int64", token_ids=inputs["token_ids"].long())
    refused(r"slots must be .* got \(1,\)", slots=inputs["slots"][:1])
    refused(r"out must be .*\(2, 96\) .* got \(1, 96\)", out=torch.zeros(1, 96))
    refused(r"k_cache and v_cache must be \(2, blocks, 2,", v_cache=inputs["v_cache"][:1])
    refused(r"k_cache and v_cache must be .* torch.bfloat16", k_cache=inputs["k_cache"].bfloat16())
    one_block = {name: inputs[name][:, :1] for name in ("k_cache", "v_cache")}
    refused("names a block outside the cache", slots=torch.full_like(inputs["slots"], -1), **one_block)
    layer = dataclasses.replace(weights.layers[0], down=torch.zeros(96, 255))
    with pytest.raises(ValueError, match=r"layers\[0\]\.qkv must be .* got \(3, 3\)"):
        PackedDecoder(dataclasses.replace(weights, layers=(dataclasses.replace(layer, qkv=torch.zeros(3, 3)),)))
    with pytest.raises(ValueError, match=r"layers\[1\]\.down must be .*\(96, 256\)"):
        PackedDecoder(dataclasses.replace(weights, layers=(weights.layers[0], layer)))
    with pytest.raises(ValueError, match="at least one layer"):
        PackedDecoder(dataclasses.replace(weights, layers=()))
    with pytest.raises(ValueError, match="isa 'mmx' cannot run here"):
        PackedDecoder(weights, isa="mmx")


# -- the linear layer --------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_in", "num_out"), [(96, 25), (33, 1), (1, 40), (257, 130)])
def test_linear(num_in, num_out, dtype, isa):
    generator = torch.Generator().manual_seed(num_in)
    wide = torch.randn(300, num_in + 9, generator=generator).to(dtype)
    x, weight = wide[:, 5 : 5 + num_in], torch.randn(num_out, num_in, generator=generator).to(dtype)
    linear = PackedLinear(weight, isa=isa)
    whole = linear.forward(x)
    exact = reference.linear(x.double(), weight.double())
    assert_within_budget(whole, exact, reference.linear(x, weight))
    for num in (1, 2, 3, 4, 5, 11, 12, 13, 24, 31, 299):
        rows = torch.randperm(300, generator=generator)[:num]
        assert torch.equal(linear.forward(x, rows), whole[rows])
    assert linear.forward(x, rows[:0]).shape == (0, num_out)


def test_linear_refuses():
    linear, x = PackedLinear(torch.zeros(25, 96)), torch.zeros(4, 96)
    with pytest.raises(ValueError, match=r"x must be \(rows, 96\) .* got \(4, 95\)"):
        linear.forward(x[:, 1:])
    with pytest.raises(ValueError, match=r"x must be .* torch.bfloat16"):
        linear.forward(x.bfloat16())
    with pytest.raises(ValueError, match=r"rows must be .* torch.int32"):
        linear.forward(x, torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"row 4 at 1 is outside 0\.\.3"):
        linear.forward(x, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"weight must be .* got \(96,\)"):
        PackedLinear(torch.zeros(96))
