"""rope_store_kv against its definition, transformers' convention, and what it must leave alone."""

import pytest
import torch

from ttc_kernels import _native
from ttc_kernels.rope_store_kv import cases, rope_store_kv
from ttc_kernels.testing import assert_within_budget, poisoned

ISAS = _native.supported_isas()
isas = pytest.mark.parametrize("isa", ISAS)


NAMES = ("qkv", "k_cache", "v_cache")


def run(inputs: dict, dtype: torch.dtype, **options) -> dict:
    """The tensors after the call: qkv, k_cache, v_cache, on copies in `dtype`."""
    copies = {name: inputs[name].to(dtype, copy=True) for name in NAMES}
    bias = None if inputs["bias"] is None else inputs["bias"].to(dtype)
    rope_store_kv(**{**inputs, **copies, "bias": bias}, **options)
    return copies


@pytest.mark.parametrize("case", cases.tiny(), ids=str)
def test_matches_the_reference_in_float64(case):
    inputs = case.inputs()
    exact = run(inputs, torch.float64, impl="reference")
    plain = run(inputs, case.dtype, impl="reference")
    for isa in ISAS:
        result = run(inputs, case.dtype, isa=isa)
        for name, out in result.items():
            assert_within_budget(out, exact[name], plain[name])
        assert torch.equal(result["v_cache"], plain["v_cache"])
        num_q = case.num_heads * case.head_dim
        assert torch.equal(result["qkv"][:, num_q:], inputs["qkv"][:, num_q:])  # only queries change


@isas
def test_a_bias_is_what_torch_adds_beforehand(isa):
    """To the bit, so that layers may leave it to this op."""
    for case in cases.tiny():
        if case.has_bias:
            inputs = case.inputs()
            added = run({**inputs, "qkv": inputs["qkv"] + inputs["bias"], "bias": None}, case.dtype, isa=isa)
            result = run(inputs, case.dtype, isa=isa)
            num_queries = case.num_heads * case.head_dim
            added["qkv"][:, num_queries:] = inputs["qkv"][:, num_queries:]  # keys and values stay as they were
            for name in NAMES:
                assert torch.equal(result[name], added[name])


def test_agrees_with_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    case = cases.Case(9, 4, 2, 64, torch.float32)
    inputs = case.inputs()
    inputs["slots"] = torch.arange(9, dtype=torch.int32)
    heads = inputs["qkv"].view(1, 9, 8, 64).transpose(1, 2)
    cos, sin = (inputs[n][inputs["positions"]].repeat(1, 2)[None] for n in ("cos", "sin"))
    q, k = apply_rotary_pos_emb(heads[:, :4], heads[:, 4:6], cos, sin)
    result = run(inputs, torch.float32)
    torch.testing.assert_close(result["qkv"][:, :256].view(9, 4, 64), q[0].transpose(0, 1))
    torch.testing.assert_close(result["k_cache"][0, :, :9], k[0])


@isas
def test_slot_minus_one_stores_nothing(isa):
    inputs = cases.Case(5, 2, 1, 16, torch.float32).inputs()
    inputs["slots"] = torch.full((5,), -1, dtype=torch.int32)
    inputs["qkv"][:, 32:] = float("nan")  # keys and values are not needed
    result = run(inputs, torch.float32, isa=isa)
    assert torch.isfinite(result["qkv"][:, :32]).all()
    assert not result["k_cache"].any()
    assert not result["v_cache"].any()


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_do_not_depend_on_batch_or_threads(isa, dtype):
    case = cases.Case(700, 6, 2, 24, dtype)
    inputs = case.inputs()
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            results.append(run(inputs, dtype, isa=isa))
    finally:
        torch.set_num_threads(before)
    for name, out in results[0].items():
        assert torch.equal(out, results[1][name])
    rows = torch.tensor([650, 3, 77])
    part = {**inputs, **{n: inputs[n][rows] for n in ("qkv", "positions", "slots")}}
    alone = run(part, dtype, isa=isa)
    assert torch.equal(alone["qkv"], results[0]["qkv"][rows])
    for slot in part["slots"].tolist():
        place = (slot // 16, slice(None), slot % 16)
        assert slot < 0 or torch.equal(alone["k_cache"][place], results[0]["k_cache"][place])


@isas
def test_strided_rows(isa):
    inputs = cases.Case(7, 6, 2, 24, torch.float32).inputs()
    expected = run(inputs, torch.float32, isa=isa)
    wide = poisoned(7, 2 * inputs["qkv"].shape[1])
    inputs["qkv"] = wide[:, : inputs["qkv"].shape[1]].copy_(inputs["qkv"])
    rope_store_kv(**inputs, isa=isa)
    assert torch.equal(inputs["qkv"], expected["qkv"])
    assert torch.equal(inputs["k_cache"], expected["k_cache"])


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"qkv": torch.zeros(5, 63)}, r"\(5, 63\)"),
        ({"qkv": torch.zeros(5, 64).half()}, "float16"),
        ({"qkv": torch.zeros(5, 64).bfloat16()}, "bfloat16"),
        ({"qkv": torch.zeros(5, 32)}, r"\(5, 32\)"),
        ({"bias": torch.zeros(63)}, r"bias must be .*\(64,\) .*, got \(63,\)"),
        ({"bias": torch.zeros(64).bfloat16()}, "bfloat16"),
        ({"cos": torch.zeros(1024, 16)}, r"cos must be .*\(1024, 8\) .*, got \(1024, 16\)"),
        ({"slots": torch.zeros(4, dtype=torch.int32)}, r"slots must be .*\(5,\) .*, got \(4,\)"),
        ({"positions": torch.zeros(5, dtype=torch.int64)}, "int64"),
        ({"positions": torch.full((5,), 1024, dtype=torch.int32)}, "position 1024 of row 0"),
        ({"slots": torch.full((5,), 32, dtype=torch.int32)}, "slot 32 of row 0 is outside the cache of 32"),
        ({"slots": torch.full((5,), -2, dtype=torch.int32)}, "slot -2"),
        ({"impl": "fast"}, "'fast'"),
        ({"isa": "mmx"}, "'mmx'"),
    ],
)
def test_refuses(change, shown):
    inputs = cases.Case(5, 2, 1, 16, torch.float32).inputs()
    with pytest.raises(ValueError, match=shown):
        rope_store_kv(**{**inputs, **change})
