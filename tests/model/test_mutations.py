"""Damaged and hostile safetensors files are refused in one line and take no memory; pickles and code are not read."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine import Engine
from engine.errors import UserError
from engine.model import load_checkpoint, load_trunk_head, read_config
from tests.model.folders import change_config, load, refused

NUMBERS = st.sampled_from([-1, 0, 1, 3, 4, 1 << 31, 1 << 32, (1 << 62) + 1, 10**400, 1.5, True, None, "4", [4]])


class Header:
    """The parts of a safetensors file: its header as (name, entry) pairs, so that a name may stand twice; the rest."""

    def __init__(self, whole: bytes):
        (length,) = struct.unpack("<Q", whole[:8])
        self.pairs = list(json.loads(whole[8 : 8 + length]).items())
        self.body = whole[8 + length :]
        self.tensors = [index for index, (name, _) in enumerate(self.pairs) if name != "__metadata__"]

    def bytes(self, length: int | None = None) -> bytes:
        text = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in self.pairs) + "}"
        return struct.pack("<Q", len(text) if length is None else length) + text.encode() + self.body


def truncated(data: st.DataObject, whole: bytes) -> bytes:
    return whole[: data.draw(st.integers(0, len(whole) - 1))]


def of_another_length(data: st.DataObject, whole: bytes) -> bytes:
    lengths = st.one_of(st.integers(0, 5000), st.integers(0, (1 << 64) - 1))
    length = data.draw(lengths.filter(lambda length: length != struct.unpack("<Q", whole[:8])[0]))
    return struct.pack("<Q", length) + whole[8:]


def of_other_bytes(data: st.DataObject, whole: bytes) -> bytes:
    """Some bytes of the header are others; those of the tensors would make other weights."""
    (length,) = struct.unpack("<Q", whole[:8])
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(8, 7 + length))] = data.draw(st.integers(0, 255))
    return bytes(changed)


def of_another_entry(data: st.DataObject, whole: bytes) -> bytes:
    """A shape that overflows, offsets that overlap, leave a gap or end outside the file, another type."""
    header = Header(whole)
    name, entry = header.pairs[index := data.draw(st.sampled_from(header.tensors))]
    field = data.draw(st.sampled_from(["shape", "data_offsets", "dtype"]))
    value = data.draw(st.sampled_from(["F64", "I8", "U64", "F8_E4M3", "x", 3, None])) if field == "dtype" else None
    value = data.draw(st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS)) if value is None else value
    header.pairs[index] = (name, entry | {field: value})
    return header.bytes()


def with_overlap(data: st.DataObject, whole: bytes) -> bytes:
    header = Header(whole)
    name, entry = header.pairs[index := data.draw(st.sampled_from(header.tensors))]
    shift = data.draw(st.sampled_from([-8, -4, -1, 1, 4, 8, 1 << 40]))
    header.pairs[index] = (name, entry | {"data_offsets": [each + shift for each in entry["data_offsets"]]})
    return header.bytes()


def with_a_name_twice(data: st.DataObject, whole: bytes) -> bytes:
    header = Header(whole)
    first, second = data.draw(st.permutations(header.tensors))[:2]
    name = header.pairs[first][0]
    entry = header.pairs[data.draw(st.sampled_from([first, second]))][1]
    header.pairs.insert(data.draw(st.integers(0, len(header.pairs))), (name, entry))
    return header.bytes()


def with_more(data: st.DataObject, whole: bytes) -> bytes:
    return whole + data.draw(st.binary(min_size=1, max_size=64))


MUTATIONS = [truncated, of_another_length, of_other_bytes, of_another_entry, with_overlap, with_a_name_twice, with_more]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_mutated_weights_are_refused_in_one_line(folder, mutate):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    stored = load_file(path)
    load(folder)
    before, sentences = peak_kilobytes(), []

    @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        path.write_bytes(mutate(data, whole))
        sentence = "it is read as it was"
        try:
            tensors = load_checkpoint(folder, torch.float32).tensors
            assert all(torch.equal(tensors[name], tensor) for name, tensor in stored.items())
        except UserError as error:
            sentence = str(error)
        sentences.append(sentence)

    hold()
    assert not any("\n" in each or len(each) > 1000 for each in sentences)
    assert len(set(sentences) - {"it is read as it was"}) >= 1
    assert mutate in (of_other_bytes, of_another_entry) or "it is read as it was" not in sentences
    assert peak_kilobytes() - before < 64 << 10


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_name_that_stands_twice_is_told(folder):
    path = folder / "model.safetensors"
    header = Header(path.read_bytes())
    header.pairs.append(header.pairs[header.tensors[0]])
    path.write_bytes(header.bytes())
    refused(folder, str(path), header.pairs[-1][0])


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.pt", "pytorch_model.safetensors.bin"])
@pytest.mark.parametrize("part", ["policy", "prm", "trunk_head"])
def test_a_pickle_is_refused_for_every_part(folders, tmp_path, part, name):
    """Where safetensors are missing nothing else is read in their place."""
    folder = shutil.copytree(getattr(folders, part), tmp_path / part)
    (folder / "model.safetensors").unlink()
    torch.save(Trap(tmp_path / "opened"), folder / name)
    parts = {"policy": folders.policy} | {part: folder}
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        Engine.load(**parts, num_blocks=8)
    assert not (tmp_path / "opened").exists()


def test_an_index_that_names_a_pickle(folder, tmp_path):
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    torch.save(Trap(tmp_path / "opened"), folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "pytorch_model.bin cannot be read as safetensors")
    torch.save(Trap(tmp_path / "opened"), folder / "model.safetensors", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "cannot be read as safetensors")
    assert not (tmp_path / "opened").exists()
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_trunk_head(folder, read_config(folder), torch.float32)


REMOTE = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"), "trap.Model")
NESTED = [
    {"auto_map": REMOTE},
    {"text_config": {"auto_map": REMOTE, "architectures": ["TrapForCausalLM"], "model_type": "trap"}},
    {"vision_config": {"auto_map": REMOTE}, "custom_pipelines": {"trap": {"impl": "trap.Model"}}},
    {"auto_map": REMOTE, "trust_remote_code": True, "custom_generate": "trap"},
]


@pytest.mark.parametrize("fields", NESTED, ids=str)
def test_code_of_a_folder_is_never_run(folder, tmp_path, fields):
    """Neither what config.json names, nor what a configuration within it or the tokenizer's names."""
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Model: pass\n")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": REMOTE}))
    change_config(folder, **fields)
    with contextlib.suppress(UserError):
        load(folder).open("1+1\n")
    change_config(folder, architectures=["TrapForCausalLM"], model_type="trap")
    refused(folder, "TrapForCausalLM", "not supported")
    assert not (tmp_path / "run").exists()
