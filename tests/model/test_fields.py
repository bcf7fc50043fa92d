"""Hostile values in every field of a `config.json`: refused in one sentence, before anything of their size is made."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import time
from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from engine.model import load_checkpoint
from engine.model.fields import MAX_TABLE_BYTES
from engine.model.rope import rope_tables
from tests.model.folders import change_config, load, refused
from tests.tiny import tiny_family

ORIGINAL = "original_max_position_embeddings"
HOSTILE = [1e-300, 0.5, 10**7, 10**9, 10**400, -1, 0, 2.5, 1e308, math.inf, math.nan, True, "x", [1], {"a": 1}]
ROPE = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {
        **{"factor": 2.0, "attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0},
        **{"mscale_all_dim": 1.0, "original_max_position_embeddings": 64, "truncate": True},
    },
}
FIRST_OF_FAMILY = (("Llama", "default"), ("Mistral", "linear"), ("Qwen2", "yarn"), ("Qwen3", "yarn"))
BESIDE_ROPE = ["max_position_embeddings", "head_dim", "hidden_size", "num_attention_heads"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_hidden_layers": 10**7}, ["num_hidden_layers", "got 10000000"]),
        ({"num_hidden_layers": 4000}, ["model.layers.2.", "num_hidden_layers is 4000"]),
        ({"max_position_embeddings": 10**9}, ["max_position_embeddings", "1000000000 tokens", "at most 33554432"]),
        ({"num_attention_heads": 10**9}, ["num_attention_heads", "got 1000000000"]),
        ({"num_attention_heads": 4096, "num_key_value_heads": 1, "head_dim": 16}, ["q_proj.weight", "(65536, 32)"]),
        ({"vocab_size": 10**9}, ["vocab_size", "got 1000000000"]),
        ({"vocab_size": 10**7}, ["embed_tokens.weight", "(10000000, 32)"]),
        ({"intermediate_size": 4 << 20}, ["mlp.down_proj.weight", "(32, 4194304)"]),
        ({"rms_norm_eps": math.inf}, ["rms_norm_eps", "got inf"]),
        ({"rms_norm_eps": math.nan}, ["rms_norm_eps", "got nan"]),
        ({"rms_norm_eps": True}, ["rms_norm_eps", "got True"]),
        ({"rms_norm_eps": -1e-5}, ["rms_norm_eps", "got -1e-05"]),
        ({"tie_word_embeddings": "false"}, ["tie_word_embeddings", "got 'false'"]),
        ({"rope_parameters": {**ROPE["yarn"], "rope_type": "yarn", "factor": 1e308}}, ["factor", "yarn", "got 1e+308"]),
        *(
            ({"rope_parameters": {**ROPE["yarn"], "rope_type": "yarn", "factor": factor, ORIGINAL: value}}, [ORIGINAL])
            for factor in (None, 2.0)
            for value in (0.5, 0, 64.5)
        ),
        *(
            ({"rope_parameters": {**ROPE[kind], "rope_type": kind, "factor": 1e-300}}, ["factor", "got 1e-300"])
            for kind in ("linear", "yarn", "llama3", "dynamic")
        ),
        ({"rope_parameters": {**ROPE["yarn"], "rope_type": "yarn", "beta_fast": 5e-324}}, ["beta_fast", "got 5e-324"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": 1e6}}, ["context of 1024000000 tokens"]),
        (
            {"rope_parameters": {**ROPE["yarn"], "rope_type": "yarn", "rope_theta": 1}},
            ["rope_theta", "over 1", "got 1"],
        ),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_told_with_its_file(folder, fields, words):
    change_config(folder, **fields)
    refused(folder, *words)
    refused(folder, str(folder))


@pytest.mark.parametrize(
    ("family", "kind"),
    [*(("Llama", kind) for kind in ROPE), ("Mistral", "linear"), ("Qwen2", "yarn"), ("Qwen3", "yarn")],
)
def test_every_field_with_hostile_values(tmp_path, family, kind):
    """The folder is read, or it is said in one line what it has; either at once, and with no memory to speak of.

    Of each family once all fields, else those of the rope and what its tables are computed from.
    """
    rope = {"rope_type": kind, "rope_theta": 1e4, **ROPE[kind]}
    folder = tiny_family(tmp_path, f"{family}ForCausalLM", rope_parameters=rope)
    load(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"num_labels": 2, "max_window_layers": 28, "use_sliding_window": family == "Mistral", "id2label": {"0": "a"}}
    before, start, sentences = peak_kilobytes(), time.process_time(), []
    own = list(raw) if (family, kind) in FIRST_OF_FAMILY else BESIDE_ROPE
    for where, names in ((raw, own), (raw["rope_parameters"], list(raw["rope_parameters"]))):
        for name in names:
            old = where[name]
            for value in HOSTILE:
                where[name] = value
                (folder / "config.json").write_text(json.dumps(raw))
                with contextlib.suppress(UserError):
                    sentences.append("")
                    config = load_checkpoint(folder, torch.float32).config
                    assert config.context * config.head_dim * 4 <= MAX_TABLE_BYTES
                    tables = rope_tables(config.rope, config.rope_theta, config.head_dim, min(config.context, 64))
                    assert all(table.isfinite().all() for table in tables)
                    sentences.pop()
            where[name] = old
    assert len(sentences) > 50
    assert peak_kilobytes() - before < 64 << 10
    assert time.process_time() - start < 60


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_damaged_vocabulary_size_beside_more_end_tokens(folder):
    Path(folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    change_config(folder, vocab_size="many")
    refused(folder, "vocab_size", "got 'many'")
