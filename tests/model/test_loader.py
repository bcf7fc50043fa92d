"""What a folder must hold; anything else is one sentence, and no pickle is ever opened."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.model import load_trunk_head, read_config, resolve_dtype, resolve_folder
from engine.runtime import LLM


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the tiny policy, to be damaged."""
    return shutil.copytree(folders.policy, tmp_path / "policy")


def load(folder):
    return LLM.load(folder, num_blocks=8)


def refused(folder, *words: str) -> None:
    """The folder is refused in one line that holds the words."""
    with pytest.raises(ValueError, match=words[0]) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def change_config(folder, **fields) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw.update(fields)
    path.write_text(json.dumps({name: value for name, value in raw.items() if value != "absent"}))


def change_tensors(folder, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_whole_folder_loads(folder):
    assert load(folder).config.vocab_size == 25


def test_a_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", "no checkpoint folder", "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, name, "missing")


def test_pickled_weights_are_not_read(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused(folder, "model.safetensors is missing", ".bin files are not read")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\xff\xfe"])
def test_a_damaged_json_file(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    refused(folder, name.removesuffix(".json"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM"]),
        ({"architectures": None}, ["architecture", "None"]),
        ({"architectures": 3}, ["architecture", "3"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"attention_bias": True}, ["attention_bias", "True"]),
        ({"sliding_window": 128}, ["sliding_window", "128"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ["rope", "llama3"]),
        ({"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2}}, ["rope", "linear"]),
        ({"hidden_size": "absent"}, ["hidden_size", "missing"]),
        ({"hidden_size": "wide"}, ["hidden_size", "wide"]),
        ({"hidden_size": -32}, ["hidden_size", "-32"]),
        ({"num_hidden_layers": 2.5}, ["num_hidden_layers", "2.5"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "0"]),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, ["num_attention_heads", "3", "2"]),
        ({"head_dim": 15}, ["head_dim", "15"]),
        ({"vocab_size": 26}, ["embed_tokens", "26"]),
        ({"hidden_size": 64}, ["64"]),
        ({"eos_token_id": 25}, ["eos_token_id", "25"]),
        ({"eos_token_id": [1, "x"]}, ["eos_token_id", "x"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps", "small"]),
    ],
)
def test_a_config_that_is_not_supported(folder, fields, words):
    change_config(folder, **fields)
    refused(folder, *words)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(folder, "safetensors")


def header(folder) -> tuple[dict, bytes]:
    whole = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def write(folder, head: dict, body: bytes, length: int | None = None) -> None:
    text = json.dumps(head).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    (folder / "model.safetensors").write_bytes(size + text + body)


def test_mutated_weights(folder):
    head, body = header(folder)
    name = next(name for name in head if name != "__metadata__")
    write(folder, head, body, length=2**63)  # a huge header
    refused(folder, "safetensors")
    begin, end = head[name]["data_offsets"]
    overlap = {**head, name: {**head[name], "data_offsets": [begin + 4, end + 4]}}
    write(folder, overlap, body)
    refused(folder, "safetensors")
    overflow = {**head, name: {**head[name], "shape": [2**62, 2**62]}}
    write(folder, overflow, body)
    refused(folder, "safetensors")
    write(folder, head, body)
    load(folder)


def test_a_tensor_of_another_shape_or_missing(folder):
    name = "model.layers.1.self_attn.k_proj.weight"
    whole = load_file(folder / "model.safetensors")
    change_tensors(folder, lambda tensors: tensors.update({name: whole[name][:-1].clone()}))
    refused(folder, name, "(15, 32)", "(16, 32)")
    change_tensors(folder, lambda tensors: tensors.pop(name))
    refused(folder, name, "lacks")


def test_shards(folder):
    """Weights in two files behind an index are the weights in one."""
    tensors = load_file(folder / "model.safetensors")
    whole = load(folder)
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, members in parts.items() for name in members}}))
    sharded = load(folder)
    logits = [llm.next_logits([llm.open("1+1\n")]) for llm in (whole, sharded)]
    assert torch.equal(*logits)
    (folder / "b.safetensors").unlink()
    refused(folder, "b.safetensors is missing")


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": ["y"]}}'],
)
def test_a_damaged_index(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "index.json")


def test_an_index_that_leads_out_of_the_folder(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    refused(folder, "outside its folder", "../outside.safetensors")


def test_a_classifier_of_three_labels(folders, tmp_path):
    folder = shutil.copytree(folders.prm, tmp_path / "prm")
    change_config(folder, id2label={"0": "a", "1": "b", "2": "c"})
    refused(folder, "1 or 2 labels", "3")


def test_a_damaged_trunk_head(folders, tmp_path):
    config = read_config(folders.policy)
    folder = shutil.copytree(folders.trunk_head, tmp_path / "head")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_trunk_head(folder, config, torch.float32)
    save_file({"score.weight": torch.zeros(1, 8), "score.bias": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"score.weight.*\(1, 8\).*\(1, 32\)"):
        load_trunk_head(folder, config, torch.float32)
    path.unlink()
    with pytest.raises(ValueError, match=r"no trunk head at .*head.*missing"):
        load_trunk_head(folder, config, torch.float32)


def test_names(tmp_path):
    assert resolve_dtype("bf16") is torch.bfloat16
    with pytest.raises(ValueError, match="float8"):
        resolve_dtype("float8")
    assert resolve_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="no checkpoint folder at 'homes'"):
        resolve_folder("homes")


def test_both_spellings_of_the_rope_base(folder):
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert read_config(folder).rope_theta == 5e5
    change_config(folder, rope_parameters="absent", rope_theta=2e4)
    assert read_config(folder).rope_theta == 2e4
    change_config(folder, rope_theta="absent")
    assert read_config(folder).rope_theta == 1e4
