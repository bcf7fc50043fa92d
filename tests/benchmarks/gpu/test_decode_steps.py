"""The benchmark of decode steps on a small model: its rows, its floor, and what it asks of a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import decode_steps
from benchmarks.gpu.decode_steps import WARMUP, Rates, floor_bytes, floor_flops, load, main, measure, step_times
from benchmarks.timing import Clock
from engine.accounting.flops import attention_flops
from tests.tiny import tiny_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy"))


def test_rows_of_all_batches(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode_steps, "BATCHES", (1, 3))
    monkeypatch.setattr(Clock, "copy_bandwidth", lambda clock: 1e10)
    monkeypatch.setattr(Clock, "matmul_rate", lambda clock, dtype: 1e11)
    path = tmp_path / "steps.json"
    assert main(["--policy", str(folder), "--num-prompt", "20", "--num-steps", "5", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["commit"]
    rows = report["rows"]
    assert [(row["batch"], row["is_scored"]) for row in rows] == [(1, False), (3, False), (1, True), (3, True)]
    for row in rows:
        assert not row["has_graphs"]
        assert row["times_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["seconds"])
    assert "3, scored" in capsys.readouterr().out


def test_every_branch_decodes_to_its_limit(folder):
    llm = load(folder, "cpu", "float32", is_scored=True, num_blocks=64)
    num_ticks = llm.runner.num_ticks
    assert len(step_times(llm, 3, 20, 30)) == 30
    assert llm.runner.num_ticks - num_ticks == 30 + WARMUP, "a token of all branches in each"
    assert llm.runner.tree.num_open == 0


def test_the_floor_counts_weights_and_unique_kv_once(folder):
    llm = load(folder, "cpu", "float32", is_scored=False, num_blocks=64)
    per_token = 2 * 2 * 1 * 16 * 4  # keys and values, layers, KV heads, head dim, bytes
    weights = 4 * llm.config.shape().num_matmul_params
    assert floor_bytes(llm, 3, 20, 4) == weights + per_token * (20 + 3 * (WARMUP + 2))


def test_the_floor_is_the_longer_of_the_two(folder):
    """One branch waits for the weights, many for their multiplications."""
    llm = load(folder, "cpu", "float32", is_scored=False, num_blocks=256)
    flops = floor_flops(llm, 3, 20, 4)
    shape = llm.config.shape()
    assert flops == 3 * (2 * shape.num_matmul_params + attention_flops(shape, 2 * (20 + WARMUP + 2 + 1)))
    for batch, num_flops, name in ((1, 1e12, "bytes"), (3, 1e6, "flops")):
        row = measure(llm, batch, False, Rates(1e10, num_flops), 20, 4)
        floors = {"bytes": floor_bytes(llm, batch, 20, 4) / 1e10, "flops": floor_flops(llm, batch, 20, 4) / num_flops}
        assert (row.floor, row.floor_seconds) == (name, floors[name])


def test_a_device_that_is_not_there(capsys):
    assert main(["--device", "cuda"]) == 2
    assert "device 'cuda' was asked for, but torch" in capsys.readouterr().err
