"""rope_store_kv and copy_blocks in Triton's interpreter."""

import pytest
import torch

from tests.ttc_kernels.interpreter import DTYPES, widened
from ttc_kernels.copy_blocks import cases as copy_cases
from ttc_kernels.copy_blocks import copy_blocks
from ttc_kernels.rope_store_kv import cases as rope_cases
from ttc_kernels.rope_store_kv import rope_store_kv
from ttc_kernels.testing import assert_within_budget, in_dtypes, poisoned

ROPE_CASES = in_dtypes([case for case in rope_cases.tiny() if case.num_rows < 10], DTYPES)


def poisoned_inputs(case: rope_cases.Case, contiguous: bool) -> dict:
    """Arguments whose caches hold NaN, in the memory order of a CPU or of a GPU."""
    inputs = case.inputs(seed=3)
    for name in ("k_cache", "v_cache"):
        cache = inputs[name].contiguous() if contiguous else inputs[name]
        inputs[name] = cache.copy_(poisoned(*cache.shape, dtype=case.dtype))
    return inputs


@pytest.mark.parametrize("contiguous", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("case", ROPE_CASES, ids=str)
def test_rope_store_kv(case, contiguous):
    inputs, plain = poisoned_inputs(case, contiguous), poisoned_inputs(case, contiguous)
    exact = widened(poisoned_inputs(case, contiguous))
    rope_store_kv(**inputs, impl="triton")
    rope_store_kv(**plain, impl="reference")
    for name in ("cos", "sin"):
        exact[name] = exact[name].float()
    rope_store_kv(**exact, impl="reference")
    assert_within_budget(inputs["qkv"], exact["qkv"], plain["qkv"])
    num_queries = case.num_heads * case.head_dim
    assert torch.equal(inputs["qkv"][:, num_queries:], plain["qkv"][:, num_queries:])
    assert torch.equal(inputs["v_cache"].nan_to_num(9e3), plain["v_cache"].nan_to_num(9e3))
    is_empty = plain["k_cache"].isnan()
    assert torch.equal(inputs["k_cache"].isnan(), is_empty)
    assert_within_budget(*(x["k_cache"].masked_fill(is_empty, 0.0) for x in (inputs, exact, plain)))


def test_rope_rows_may_be_strided():
    inputs = rope_cases.Case(5, 3, 1, 24, torch.float32).inputs()
    expected = rope_cases.Case(5, 3, 1, 24, torch.float32).inputs()
    rope_store_kv(**expected, impl="triton")
    wide = poisoned(5, inputs["qkv"].shape[1] + 9)
    inputs["qkv"] = wide[:, 4:-5].copy_(inputs["qkv"])
    rope_store_kv(**inputs, impl="triton")
    for name in ("qkv", "k_cache", "v_cache"):
        assert torch.equal(inputs[name], expected[name])
    assert wide[:, :4].isnan().all()
    assert wide[:, -5:].isnan().all()


def test_rope_out_of_range_is_seen_and_writes_nowhere_else():
    """Where the native kernel raises, an exception would have to wait for the GPU."""
    case = rope_cases.Case(4, 2, 1, 16, torch.float32)
    inputs, expected = case.inputs(), case.inputs()
    rope_store_kv(**expected, impl="reference")
    inputs["positions"][1] = case.max_position
    inputs["slots"][2] = inputs["k_cache"].shape[0] * case.block_size
    rope_store_kv(**inputs, impl="triton")
    assert inputs["qkv"][1, :32].isnan().all()
    torch.testing.assert_close(inputs["qkv"][[0, 2, 3]], expected["qkv"][[0, 2, 3]])
    slot = int(expected["slots"][2])
    expected["v_cache"][slot // 16, :, slot % 16] = 0.0
    assert torch.equal(inputs["v_cache"], expected["v_cache"])


def test_rope_refuses_what_it_cannot_read():
    inputs = rope_cases.Case(4, 2, 1, 16, torch.float32).inputs()
    spread = {**inputs, "qkv": torch.zeros(4, 128)[:, ::2]}
    with pytest.raises(ValueError, match=r"rope_store_kv: qkv must have adjacent .* strides \(128, 2\)"):
        rope_store_kv(**spread, impl="triton")
    double = {name: x.double() if name in ("qkv", "k_cache", "v_cache") else x for name, x in inputs.items()}
    with pytest.raises(ValueError, match=r"rope_store_kv: .* got torch.float64 for 'triton'"):
        rope_store_kv(**double, impl="triton")


@pytest.mark.parametrize("case", in_dtypes(copy_cases.tiny(), (*DTYPES, torch.bfloat16)), ids=str)
def test_copy_blocks(case):
    """Bits are moved: bfloat16 too is right in the interpreter."""
    inputs, expected = case.inputs(seed=4), case.inputs(seed=4)
    copy_blocks(**inputs, impl="triton")
    copy_blocks(**expected, impl="reference")
    for cache, right in zip(inputs["caches"], expected["caches"], strict=True):
        assert torch.equal(cache, right)


def test_copy_blocks_of_several_programs_and_types():
    pairs = torch.tensor([[2, 0], [2, 3]], dtype=torch.int32)
    for dtype in (torch.uint8, torch.int64, torch.complex64):
        cache = torch.arange(2 * 4 * 1500).view(2, 4, 1500).to(dtype)
        expected = cache.clone()
        expected[:, [0, 3]] = cache[:, 2:3]
        copy_blocks([cache], pairs, impl="triton")
        assert torch.equal(cache, expected)
    copy_blocks([], pairs, impl="triton")


def test_copy_blocks_refuses_gaps():
    gaps = torch.zeros(2, 4, 8, 16)[..., :8]
    with pytest.raises(ValueError, match=r"copy_blocks: .* strides .* 'triton'"):
        copy_blocks([gaps], torch.tensor([[0, 1]], dtype=torch.int32), impl="triton")
