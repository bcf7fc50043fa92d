"""What a folder must hold; anything else is one sentence, and no pickle is ever opened."""

import json
import resource
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.model import load_trunk_head, read_config, resolve_dtype, resolve_folder
from tests.model.folders import change_config, load, refused


def change_tensors(folder, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_whole_folder_loads(folder):
    assert load(folder).config.vocab_size == 35


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


@pytest.mark.parametrize("part", ["self_attn.q_proj.bias", "self_attn.q_norm.weight", "mlp.router.weight"])
def test_a_tensor_that_has_no_place(folder, part):
    """A bias that is not read would be missing from the result."""
    name = f"model.layers.0.{part}"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(32)}))
    refused(folder, name, "no place", "LlamaForCausalLM")
    change_tensors(folder, lambda tensors: (tensors.pop(name), tensors.update({"lm_head.bias": torch.zeros(25)})))
    refused(folder, "lm_head.bias", "no place", "LlamaForCausalLM")
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.bias"))
    derived = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda tensors: tensors.update({derived: torch.zeros(8)}))
    load(folder)


def test_a_head_that_is_not_the_embedding_after_all(folder):
    """Stored apart and different: what is stored counts, as in transformers."""
    assert load(folder).config.is_tied
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 0}))
    assert load(folder).config.is_tied
    change_tensors(folder, lambda tensors: tensors["lm_head.weight"].mul_(-1))
    llm = load(folder)
    assert not llm.config.is_tied
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    branch = llm.open([5, 6, 7])
    with torch.inference_mode():
        want = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    assert (llm.next_logits([branch])[0] - want).abs().max() <= 1e-4


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
    refused(folder, "safetensors", "header of up to", str(2**63))
    begin, end = head[name]["data_offsets"]
    overlap = {**head, name: {**head[name], "data_offsets": [begin + 4, end + 4]}}
    write(folder, overlap, body)
    refused(folder, "safetensors")
    overflow = {**head, name: {**head[name], "shape": [2**62, 2**62]}}
    write(folder, overflow, body)
    refused(folder, "safetensors")
    write(folder, head, body)
    load(folder)


def test_a_header_of_any_size_takes_no_memory(folder):
    """A sparse file whose header is within the file, but larger than any model's."""
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 33) + b"{")
    with open(path, "r+b") as file:
        file.truncate(1 << 34)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "header of up to 16777216", str(1 << 33))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_quantized_weights(folder):
    name = "model.layers.1.self_attn.k_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(16, 32, dtype=torch.int8)}))
    refused(folder, name, "I8", "quantized")


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
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**weight_map, names[0]: "b.safetensors"}}))
    refused(folder, names[0], "b.safetensors", "not there")
    index.write_text(json.dumps({"weight_map": {**weight_map, "model.extra": "a.safetensors"}}))
    refused(folder, "model.extra", "a.safetensors", "not there")
    index.write_text(json.dumps({"weight_map": weight_map}))
    save_file({name: tensors[name] for name in names[4:]}, folder / "b.safetensors")
    refused(folder, names[4], "in both", "a.safetensors", "b.safetensors")
    (folder / "b.safetensors").unlink()
    refused(folder, "b.safetensors is missing")


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "{}", "[" * 100_000, '{"weight_map": []}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": ["y"]}}'],
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
    for name in ("float8", "fp16", "float16"):
        with pytest.raises(ValueError, match=f"dtype must be one of float32.* got '{name}'"):
            resolve_dtype(name)
    assert resolve_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="no checkpoint folder at 'homes'"):
        resolve_folder("homes")
