"""End tokens that generation_config.json names alone, and tokenizer files that would cut or pad a prompt."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from engine.model import read_config
from engine.model.digest import checkpoint_digest
from engine.runtime import LLM
from tests.model.folders import change_config, load, refused
from tests.tiny import tiny_policy


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(1, [1, 7], (1, 7)), (1, 7, (1, 7)), ([1, 3], [7, 3, 7], (1, 3, 7)), ("absent", 7, (7,)), (1, None, (1,))],
)
def test_both_files_count(tmp_path, in_config, in_generation, expected):
    folder = tiny_policy(tmp_path / "policy")
    change_config(folder, eos_token_id=in_config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert read_config(folder).eos_token_ids == expected


def test_an_answer_ends_at_such_a_token(tmp_path):
    folder = tiny_policy(tmp_path / "policy")
    change_config(folder, eos_token_id="absent")
    (folder / "generation_config.json").unlink(missing_ok=True)
    llm = load(folder)
    (drawn,) = llm.generate([llm.open("b4?\n")], max_tokens=8, seed=0)
    assert drawn.finish == "length"
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": drawn.token_ids[2]}))
    llm = load(folder)
    (ended,) = llm.generate([llm.open("b4?\n")], max_tokens=8, seed=0)
    end = drawn.token_ids.index(drawn.token_ids[2])
    assert ended.finish == "eos"
    assert ended.token_ids == drawn.token_ids[: end + 1]


def test_a_token_outside_the_vocabulary_is_refused_and_the_digest_knows_the_file(tmp_path):
    folder = tiny_policy(tmp_path / "policy")
    before = checkpoint_digest(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": read_config(folder).eos_token_ids[0], "temperature": 0.6}))
    assert checkpoint_digest(folder) == before
    path.write_text(json.dumps({"eos_token_id": [7]}))
    assert checkpoint_digest(folder) != before
    path.write_text(json.dumps({"eos_token_id": 999}))
    refused(folder, "eos_token_id", "999", "generation_config")


def test_a_tokenizer_file_neither_cuts_nor_pads(tmp_path):
    folder = tiny_policy(tmp_path / "policy")
    prompt = "?5?2?=c;d3?1?4?;a0?\n"
    expected = load(folder).encode(prompt)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert LLM.load(folder, num_blocks=8).encode(prompt) == expected
