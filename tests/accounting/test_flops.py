"""The formulas against sums by hand, and the ledger as a row."""

from dataclasses import replace

import pytest

from engine.accounting import PURPOSES, Ledger, ModelShape, attention_flops, forward_flops

SHAPE = ModelShape(num_matmul_params=1000, num_head_params=100, num_layers=2, num_heads=3, head_dim=8)


def test_one_token():
    """2 FLOPs per weight, and QK^T and PV (2 each) per key, head, layer and element."""
    assert forward_flops(SHAPE, 0, 1) == 2 * 1000 + 4 * 2 * 3 * 8 * 1
    assert forward_flops(SHAPE, 9, 1) == 2 * 1000 + 4 * 2 * 3 * 8 * 10
    assert forward_flops(SHAPE, 9, 1, 0) == 2 * 900 + 4 * 2 * 3 * 8 * 10


@pytest.mark.parametrize("first", [0, 1, 17])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 30])
def test_a_run_is_the_sum_of_its_tokens(first, num_tokens):
    one_by_one = sum(forward_flops(SHAPE, first + index, 1) for index in range(num_tokens))
    assert forward_flops(SHAPE, first, num_tokens) == one_by_one
    for cut in range(num_tokens):
        parts = forward_flops(SHAPE, first, cut) + forward_flops(SHAPE, first + cut, num_tokens - cut)
        assert parts == one_by_one


@pytest.mark.parametrize("first", [0, 3, 17])
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 30])
def test_a_window_bounds_what_its_layer_pays(first, num_tokens):
    """One layer of the two sees the last 5 tokens alone."""
    windowed = replace(SHAPE, windows=(5,))
    positions = range(first, first + num_tokens)
    pairs = sum(position + 1 + min(position + 1, 5) for position in positions)
    assert forward_flops(windowed, first, num_tokens) == 2 * 1000 * num_tokens + 4 * 3 * 8 * pairs
    assert forward_flops(replace(SHAPE, windows=(100, 100)), first, num_tokens) == forward_flops(
        SHAPE, first, num_tokens
    )


def test_only_positions_whose_logits_are_read_pay_for_the_head():
    with_all, with_one = forward_flops(SHAPE, 0, 5), forward_flops(SHAPE, 0, 5, 1)
    assert with_all - with_one == 4 * 2 * 100
    assert attention_flops(SHAPE, 2 * 15) == forward_flops(SHAPE, 0, 5, 0) - 5 * 2 * 900


def test_a_ledger():
    ledger = Ledger()
    assert set(ledger.tokens) == set(ledger.flops) == set(PURPOSES)
    ledger.add("generated", 3, 50)
    ledger.add("generated", 2)
    ledger.add("verified", 0, 7)
    assert (ledger.tokens["generated"], ledger.flops["generated"]) == (5, 50)
    assert ledger.total_flops == 57
    assert Ledger.from_dict(ledger.as_dict()) == ledger
    other = Ledger.from_dict({"tokens": {"generated": 1}, "flops": {}})
    assert other.tokens["lookahead"] == other.total_flops == 0
    assert Ledger().total_flops == 0, "ledgers share nothing"
    with pytest.raises(KeyError):
        ledger.add("tips", 1)
    copy = ledger.as_dict()
    ledger.add("cached", 9)
    assert copy["tokens"]["cached"] == 0


def test_the_shape_of_a_model_counts_its_matrices():
    """Against the weights of a real model: all but embeddings and norms."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

    from engine.model import ModelConfig

    fields = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    fields |= {"num_key_value_heads": 2, "vocab_size": 30, "head_dim": 6}
    ours = {"num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "context": 64, "rms_eps": 1e-6}
    ours |= {"rope_theta": 1e4, "is_tied": False, "eos_token_ids": (), "vocab_size": 30, "hidden_size": 24}
    for model_class, num_labels in ((LlamaForCausalLM, 0), (LlamaForTokenClassification, 2)):
        with torch.device("meta"):
            model = model_class(LlamaConfig(**fields))
        linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
        config = ModelConfig(model_class.__name__, intermediate_size=40, num_labels=num_labels, **ours)
        shape = config.shape(has_lm_head=num_labels == 0)
        assert shape.num_matmul_params == sum(weight.numel() for weight in linear)
        assert shape.num_head_params == linear[-1].numel()
        assert shape.windows == ()
        assert replace(config, windows=(None, 7, 9)).shape().windows == (7, 9)
