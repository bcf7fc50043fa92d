"""What a config.json may say; anything that would make another model is refused by name."""

import pytest

from engine.model import read_config
from tests.model.folders import change_config, load, refused
from tests.tiny import tiny_family


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM"]),
        ({"architectures": None}, ["architecture", "None"]),
        ({"architectures": 3}, ["architecture", "3"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"attention_bias": True}, ["attention_bias", "True"]),
        ({"sliding_window": 128}, ["sliding_window", "128"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "sliding_attention"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"model_type": "gemma2"}, ["model_type", "gemma2"]),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0"]),
        ({"final_logit_softcapping": 1.0}, ["final_logit_softcapping", "1.0"]),
        ({"attention_multiplier": 1.0}, ["attention_multiplier", "1.0"]),
        ({"residual_multiplier": 0}, ["residual_multiplier", "0"]),
        ({"num_local_experts": 1}, ["num_local_experts", "1"]),
        ({"rotary_pct": 0.25}, ["rotary_pct", "0.25"]),
        ({"rotary_pct": True}, ["rotary_pct", "True"]),
        ({"qkv_bias": True}, ["qkv_bias", "True"]),
        ({"clip_qkv": 8.0}, ["clip_qkv", "8.0"]),
        ({"norm_type": "layernorm"}, ["norm_type", "layernorm"]),
        ({"embedding_multiplier": 12.0}, ["embedding_multiplier", "12.0"]),
        ({"scale_emb": 12}, ["scale_emb", "12"]),
        ({"num_local_experts": 8}, ["num_local_experts", "8"]),
        ({"use_qk_norm": True}, ["use_qk_norm", "True"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"is_causal": False}, ["is_causal", "False"]),
        ({"mlp_bias": True}, ["mlp_bias", "True"]),
        ({"use_mrope": True}, ["use_mrope", "True"]),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor", "llama3", "None"]),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 8.0}}, ["rope", "longrope"]),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}, ["mrope_section", "2, 3, 3"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["full_attention", "not supported"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"rope_theta": -1.0}}, ["rope_theta", "-1.0"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("inf")}}, ["factor", "inf"]),
        ({"rope_parameters": [1]}, ["rope_parameters", "[1]"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_scaling", "rope_parameters", "not the same"]),
        ({"rope_parameters": "absent", "rope_scaling": {"type": "linear"}}, ["factor", "linear", "None"]),
        ({"rope_parameters": "absent", "rope_theta": "high"}, ["rope_theta", "high"]),
        ({"hidden_size": "absent"}, ["hidden_size", "missing"]),
        ({"hidden_size": "wide"}, ["hidden_size", "wide"]),
        ({"hidden_size": -32}, ["hidden_size", "-32"]),
        ({"num_hidden_layers": 2.5}, ["num_hidden_layers", "2.5"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "0"]),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, ["num_attention_heads", "3", "2"]),
        ({"head_dim": 15}, ["head_dim", "15"]),
        ({"head_dim": 258}, ["head_dim", "258"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads", "0"]),
        ({"num_hidden_layers": 1}, ["model.layers.1.", "no place", "1 layers"]),
        ({"vocab_size": 26}, ["embed_tokens", "26"]),
        ({"hidden_size": 64}, ["64"]),
        ({"eos_token_id": 35}, ["eos_token_id", "35"]),
        ({"eos_token_id": [1, "x"]}, ["eos_token_id", "x"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps", "small"]),
    ],
)
def test_a_config_that_is_not_supported(folder, fields, words):
    change_config(folder, **fields)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("Qwen2", {"attention_bias": False}, ["attention_bias", "False", "only True"]),
        ("Qwen3", {"attention_bias": True}, ["attention_bias", "True", "only False"]),
        ("Mistral", {"attention_bias": True}, ["attention_bias", "True"]),
        ("Mistral", {"sliding_window": 0}, ["sliding_window", "0"]),
        ("Mistral", {"sliding_window": "wide"}, ["sliding_window", "wide"]),
        ("Mistral", {"use_sliding_window": False}, ["use_sliding_window", "False"]),
        ("Mistral", {"layer_types": ["full_attention"] * 2}, ["layer_types", "full_attention"]),
        ("Qwen2", {"layer_types": ["sliding_attention"] * 2}, ["layer_types", "sliding_attention", "None"]),
        ("Qwen2", {"layer_types": ["full_attention"]}, ["layer_types", "2 of"]),
        ("Qwen3", {"layer_types": ["full_attention", "linear_attention"]}, ["layer_types", "linear_attention"]),
        ("Qwen2", {"layer_types": "absent", "max_window_layers": "x"}, ["max_window_layers", "x"]),
        ("Qwen3", {"num_experts": 4}, ["num_experts", "4"]),
    ],
)
def test_a_config_that_its_family_does_not_have(tmp_path, family, fields, words):
    folder = tiny_family(tmp_path, f"{family}ForCausalLM", head_dim=8)
    change_config(folder, **fields)
    refused(folder, *words)


def test_remote_code_is_not_run(folder):
    """An architecture that we have is loaded without it; of another, the sentence says what it wants."""
    (folder / "modeling_other.py").write_text("raise SystemExit('remote code was run')")
    remote = {"auto_map": {"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}}
    change_config(folder, **remote)
    load(folder)
    change_config(folder, architectures=["OtherForCausalLM"])
    refused(folder, "OtherForCausalLM", "remote code", "auto_map", "never run")


def test_fields_that_are_off_change_nothing(folder):
    config = read_config(folder)
    off = {"num_experts": 0, "residual_multiplier": 1.0, "final_logit_softcapping": None, "quantization_config": None}
    change_config(folder, **off, hidden_act="swish", use_sliding_window=False, pretraining_tp=2, unsloth_version="1")
    assert read_config(folder) == config


def test_what_a_family_takes_for_granted(tmp_path):
    """Fields that a config leaves out are transformers' own defaults."""
    absent = dict.fromkeys(("sliding_window", "num_key_value_heads", "head_dim"), "absent")
    folder = tiny_family(tmp_path / "mistral", "MistralForCausalLM", num_attention_heads=8)
    change_config(folder, **absent, max_position_embeddings=9000)
    config = read_config(folder)
    assert (config.windows, config.num_kv_heads, config.head_dim) == ((4096, 4096), 8, 4)
    folder = tiny_family(tmp_path / "qwen3", "Qwen3ForCausalLM", num_attention_heads=32)
    change_config(folder, **absent)
    config = read_config(folder)
    assert (config.windows, config.num_kv_heads, config.head_dim) == ((), 32, 128)


def test_both_spellings_of_the_rope_base(folder):
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert read_config(folder).rope_theta == 5e5
    change_config(folder, rope_parameters="absent", rope_theta=2e4)
    assert read_config(folder).rope_theta == 2e4
    change_config(folder, rope_theta="absent")
    assert read_config(folder).rope_theta == 1e4
