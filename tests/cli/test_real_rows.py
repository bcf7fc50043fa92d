"""Rows as GSM8K has them, through the command line, with a policy and a PRM of other families and tokenizers."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.accounting import PURPOSES
from engine.engine import Engine
from engine.results import read_rows
from engine.results.rows import FIELDS, Row
from engine.runtime import LLM
from engine.search import BeamSearch
from engine.verifiers.detect import find_spec
from tests.cli.conftest import assert_refused
from tests.docs.builders import WORD_PROBLEMS, word_policy, write_rows
from tests.verifiers.builders import make

GOLDS = ["67", "120", "1000", "75"]
BUDGET = 8
MAX_TOKENS = 512  # of task gsm8k


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 policy, a Llama PRM in Qwen's format, and the rows."""
    folder = tmp_path_factory.mktemp("gsm8k")
    word_policy(folder / "policy")
    make(folder / "prm", "qwen-prm", seed=1)
    write_rows(folder / "gsm8k.jsonl", WORD_PROBLEMS)
    return folder


@pytest.fixture
def search(ttc, folder, tmp_path):
    """`ttc search` on the rows; returns the result rows."""

    def call(*more: object, out: str = "rows.jsonl") -> list[Row]:
        arguments = ["search", folder / "gsm8k.jsonl", "--policy", folder / "policy", "--prm", folder / "prm"]
        arguments += ["--strategy", "beam", "--budget", BUDGET, "--limit", 4, "--task", "gsm8k"]
        outcome = ttc(*arguments, "--out", tmp_path / out, *more)
        assert outcome.status == 0, outcome.err
        assert outcome.last_line.startswith("4 problems, accuracy ")
        return read_rows(tmp_path / out)

    return call


def test_the_models_are_strangers(folder):
    architectures = [
        json.loads((folder / name / "config.json").read_text())["architectures"] for name in ("policy", "prm")
    ]
    assert architectures == [["Qwen2ForCausalLM"], ["LlamaForProcessRewardModel"]]
    assert find_spec(folder / "prm").name == "qwen-prm"
    policy = LLM.load(folder / "policy", num_blocks=8)
    judge = LLM.load(folder / "prm", architecture="LlamaForCausalLM", num_blocks=8)
    text = WORD_PROBLEMS[0]["question"]
    assert policy.encode(text) != judge.encode(text)
    assert policy.decode(policy.encode(text)) == judge.decode(judge.encode(text)) == text


def test_beam_search(search):
    rows = search()
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["problem"] for row in rows] == [row["question"] for row in WORD_PROBLEMS]
    assert [row["answer"] for row in rows] == GOLDS
    for row in rows:
        check_row(row)
    again = search("--max-batch", 3, out="again.jsonl")
    assert [answers_of(row) for row in again] == [answers_of(row) for row in rows]
    assert max(len(scores) for row in rows for scores in row["scores"]) > 1, "no answer has two steps"
    assert any(answer is not None for row in rows for answer in row["answers"]), "nothing votes"


def answers_of(row: Row) -> Row:
    """A row without its bill: who pays for the PRM's system prompt depends on who comes first."""
    return {name: value for name, value in row.items() if name != "ledger"}


def check_row(row: Row) -> None:
    """A row of a beam search as the design states it."""
    assert set(FIELDS) <= row.keys()
    assert (row["strategy"], row["budget"], row["seed"]) == ("beam", BUDGET, 0)
    for name in ("completions", "scores", "agg_scores", "completion_tokens", "answers", "finishes"):
        assert len(row[name]) == BUDGET, name
    assert row["pred"] is None or row["pred"] in row["answers"]
    assert row["correct"] is (row["pred"] == row["answer"])
    assert row["num_errors"] == 0
    assert all(0 < count <= MAX_TOKENS for count in row["completion_tokens"])
    for scores, agg_score in zip(row["scores"], row["agg_scores"], strict=True):
        assert all(0 < score < 1 for score in scores)
        assert agg_score == (scores[-1] if scores else 0.0)
    check_ledger(row)


def check_ledger(row: Row) -> None:
    ledger = row["ledger"]
    for part in ("tokens", "flops"):
        assert set(ledger[part]) == set(PURPOSES)
        assert all(math.isfinite(value) and value >= 0 for value in ledger[part].values())
    assert ledger["tokens"]["generated"] >= max(row["completion_tokens"])
    assert ledger["tokens"]["verified"] > 0
    assert ledger["flops"]["verified"] > 0
    assert ledger["tokens"]["lookahead"] == ledger["tokens"]["estimation"] == 0


def test_a_gold_answer_is_found_by_the_grader(ttc, folder, tmp_path):
    """Worked answers as completions: right ones are right, whatever stands before `####`."""
    rows = [
        {**row, "completions": [row["answer"], row["answer"].replace("#### ", "#### 1")], "id": str(index)}
        for index, row in enumerate(WORD_PROBLEMS)
    ]
    outcome = ttc("grade", write_rows(tmp_path / "rows.jsonl", rows), "--task", "gsm8k", "--json", tmp_path / "x.json")
    assert outcome.status == 0, outcome.err
    figures = json.loads((tmp_path / "x.json").read_text())
    assert [figures[n]["pass"] for n in ("1", "2")] == [1.0, 1.0]
    swapped = [{**row, "completions": row["completions"][::-1]} for row in rows]
    outcome = ttc(
        "grade", write_rows(tmp_path / "rows.jsonl", swapped), "--task", "gsm8k", "--json", tmp_path / "x.json"
    )
    assert json.loads((tmp_path / "x.json").read_text())["1"]["pass"] == 0.0


# -- what can be wrong with a checkpoint or a row ------------------------------------------------

UP = "model.layers.0.mlp.up_proj.weight"


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Changes the header of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def change_tensors(path: Path, change: Callable[[dict], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def overlap(path: Path) -> None:
    def change(header: dict) -> None:
        first, second, *_ = (name for name in header if name != "__metadata__")
        header[second]["data_offsets"] = header[first]["data_offsets"]

    rewrite(path, change)


def oversize_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])


def shorten_tensor(path: Path) -> None:
    change_tensors(path, lambda tensors: tensors.update({UP: tensors[UP][:, :-1].contiguous()}))


def drop_tensor(path: Path) -> None:
    change_tensors(path, lambda tensors: tensors.pop(UP))


def add_tensor(path: Path) -> None:
    change_tensors(path, lambda tensors: tensors.update({"model.layers.0.mlp.router.weight": torch.zeros(2)}))


def lose_a_shard(path: Path) -> None:
    names = list(load_file(path))
    path.rename(path.with_name("a.safetensors"))
    index = {"weight_map": dict.fromkeys(names, "a.safetensors") | {UP: "b.safetensors"}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))


def leave_a_pickle(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def want_remote_code(path: Path) -> None:
    config = json.loads(path.with_name("config.json").read_text())
    config |= {"architectures": ["FancyForCausalLM"], "auto_map": {"AutoModel": "fancy.FancyForCausalLM"}}
    path.with_name("config.json").write_text(json.dumps(config))
    path.with_name("fancy.py").write_text("raise SystemExit")


def shorten_context(path: Path) -> None:
    config = json.loads(path.with_name("config.json").read_text()) | {"max_position_embeddings": 16}
    path.with_name("config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("part", ["policy", "prm"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "not fully covered"),
        (overlap, "invalid offset"),
        (oversize_header, "it says 1099511627776"),
        (shorten_tensor, f"tensor '{UP}' has shape"),
        (drop_tensor, f"lacks tensor '{UP}'"),
        (add_tensor, "'model.layers.0.mlp.router.weight' has no place"),
        (lose_a_shard, "b.safetensors is missing"),
        (leave_a_pickle, "pickled .bin files are not read"),
        (want_remote_code, "wants remote code (auto_map), which is never run"),
        (shorten_context, "line 1: the prompt has"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_damaged_checkpoint_is_named(ttc, folder, tmp_path, part, damage, says):
    wrong = shutil.copytree(folder / part, tmp_path / "wrong")
    damage(wrong / "model.safetensors")
    arguments = ["search", folder / "gsm8k.jsonl", "--policy", folder / "policy", "--prm", folder / "prm"]
    arguments += ["--task", "gsm8k", "--num-blocks", 512, "--out", tmp_path / "out.jsonl", f"--{part}", wrong]
    assert_refused(ttc(*arguments), str(wrong), says)
    assert not (tmp_path / "out.jsonl").exists()


def test_answers_that_could_not_be_scored_are_counted(ttc, folder, tmp_path):
    """A PRM whose context is full: no silent zero per cent."""
    short = shutil.copytree(folder / "prm", tmp_path / "short")
    config = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 165}
    (short / "config.json").write_text(json.dumps(config))
    out = tmp_path / "rows.jsonl"
    arguments = ["search", folder / "gsm8k.jsonl", "--policy", folder / "policy", "--prm", short]
    outcome = ttc(*arguments, "--task", "gsm8k", "--limit", 1, "--out", out)
    assert outcome.status == 0, outcome.err
    num_errors = sum(row["num_errors"] for row in read_rows(out))
    assert num_errors > 0
    assert f", {num_errors} answers left out (NaN, or too long for the verifier), " in outcome.last_line


def test_a_calibration_holds_for_a_way_of_asking(folder):
    """Other prompts, delimiters or formats of the verifier are other conditions."""
    spec = folder / "mine.yaml"
    spec.write_text("base: qwen-prm\nsystem: Be strict.\n")
    ways = [
        {},
        {"prompt_style": "chat"},
        {"prompt_style": "chat", "system_prompt": "Think."},
        {"system_prompt": "Think."},
        {"step_delimiter": "2"},
        {"prm_spec": spec},
    ]
    found = []
    for way in ways:
        engine = Engine.load(folder / "policy", prm=folder / "prm", task="gsm8k", num_blocks=8, **way)
        found.append(engine.conditions(BeamSearch()))
    assert all(one != other for index, one in enumerate(found) for other in found[:index])
    named = Engine.load(folder / "policy", prm=folder / "prm", prm_spec="qwen-prm", task="gsm8k", num_blocks=8)
    assert named.conditions(BeamSearch()) == found[0]
