"""Tensor parallelism: two processes with gloo on a CPU compute what one process does; what is refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import Engine
from engine.cli import main
from engine.model import Placement, Ranks, resolve_device
from engine.results import read_rows
from engine.runtime import LLM
from tests.model.rank_program import FAMILIES, SEARCHES, generated, load, next_logits, rows_of
from tests.tiny import tiny_family, tiny_policy, tiny_trunk_head

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 300  # many times what they need: a rank that waits for ever fails the tests
EXACT = ("id", "pred", "completions", "answers", "finishes", "completion_tokens", "ledger", "num_errors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with two KV heads: one of each family, a policy, a PRM and a trunk head."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in FAMILIES:
        tiny_family(folder / name, name, **({"sliding_window": 20} if "Mistral" in name else {}))
    tiny_family(folder / "policy", "LlamaForCausalLM", tie_word_embeddings=True, seed=1)
    tiny_family(folder / "prm", "LlamaForTokenClassification", num_labels=1, seed=2)
    tiny_trunk_head(folder / "trunk_head")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict]:
    """What both ranks have found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.model.rank_program", str(folder)]
    ranks = subprocess.Popen(command, cwd=ROOT, env=os.environ | together, start_new_session=True)
    try:
        assert ranks.wait(MAX_SECONDS) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ranks.pid, signal.SIGKILL)
        ranks.wait()
    return [pickle.loads((folder / f"found.{rank}").read_bytes()) for rank in range(2)]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    """The same models in one process."""
    return load(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_one_process(folder, found, name):
    whole = next_logits(LLM.load(folder / name, num_blocks=64))
    torch.testing.assert_close(found[0]["logits"][name], whole, atol=1e-4, rtol=0)
    assert torch.equal(found[0]["logits"][name], found[1]["logits"][name])


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    """The same texts, answers and bill, and scores to rounding."""
    assert [[row[part] for part in EXACT] for row in rows] == [[row[part] for part in EXACT] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for scores, others in zip(row["scores"], other["scores"], strict=True):
            assert scores == pytest.approx(others, abs=1e-4)
        assert row["agg_scores"] == pytest.approx(other["agg_scores"], abs=1e-4)


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_those_of_one_process(engine, found, name):
    expected = rows_of(engine, name)
    has_draws = any(len(set(row["completions"])) > 1 for row in expected)
    assert has_draws != name.startswith("greedy"), "a search that finds one text shows little"
    assert_same(found[0]["rows"][name], expected)
    assert found[0]["rows"][name] == found[1]["rows"][name]


def test_ranks_give_way_alike_where_the_pool_is_small(engine, found):
    assert found[0]["suspensions"] == found[1]["suspensions"] > 0
    assert found[0]["tight"] == found[1]["tight"] == generated(engine.policy)


def test_a_rank_holds_the_kv_of_its_own_heads(engine, found):
    for llm, shape in zip((engine.policy, engine.prm), found[0]["shapes"], strict=True):
        layers, blocks, kv_heads, *others = llm.runner.pool.k.shape
        assert kv_heads == 2
        assert shape == [layers, blocks, 1, *others]


@pytest.mark.parametrize("index", [0, 1], ids=["greedy", "sampled"])
def test_a_part_of_the_vocabulary_draws_what_all_of_it_draws(found, index):
    tokens, logprobs, whole_tokens, whole_logprobs, logits, whole_logits = found[0]["draws"][index]
    assert torch.equal(tokens, whole_tokens)
    torch.testing.assert_close(logprobs, whole_logprobs, atol=1e-6, rtol=0, equal_nan=True)
    assert whole_tokens[3:8].tolist() == [-1] * 5, "rows without a finite logit, with NaN, with infinity"
    assert (whole_tokens[1] >= 30) & (0 <= whole_tokens[2] < 30)
    torch.testing.assert_close(logits, whole_logits, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(tokens, found[1]["draws"][index][0])


def test_the_command_line_writes_once_and_resumes(folder, found, tmp_path):
    (first, resumed, again), others = (rank["command line"] for rank in found)
    assert [status for status, _ in (first, resumed, again)] == [0, 0, 0]
    assert "resumed 2" in resumed[1]
    assert "resumed 3" in again[1]
    assert others == [(0, "")] * 3, "the second rank says nothing"
    alone = tmp_path / "alone.jsonl"
    line = ["search", "--policy", folder / "policy", "--prm", folder / "prm", "--out", alone, "--limit", 3]
    assert main([str(word) for word in [*line, "--budget", 4, "--max-tokens", 20, "--num-blocks", 512]]) == 0
    rows = [{**row, "ledger": None} for row in read_rows(folder / "rows.jsonl")]  # the last one was made alone
    assert_same(rows, [{**row, "ledger": None} for row in read_rows(alone)])


# -- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "why"), [({}, "there is no process group"), ({"WORLD_SIZE": "3"}, "are 3")])
def test_without_as_many_processes(folder, monkeypatch, environment, why):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"tensor_parallel 2 needs as many .* --nproc-per-node 2: .*{why}$"):
        load(folder, tensor_parallel=2)
    with pytest.raises(ValueError, match="tensor_parallel must be at least 1, got 0"):
        load(folder, tensor_parallel=0)


def test_sizes_that_do_not_divide(folder, tmp_path):
    def refused(folder: Path, num_ranks: int, why: str) -> None:
        with pytest.raises(ValueError, match=rf"^{folder}: tensor_parallel {num_ranks} does not divide its {why}$"):
            LLM.load(folder, device=Placement(torch.device("cpu"), ranks=Ranks(1, num_ranks)), num_blocks=8)

    refused(tiny_policy(tmp_path / "one"), 2, "1 KV heads")
    refused(tiny_family(tmp_path / "odd", "LlamaForCausalLM", intermediate_size=45), 2, "45 intermediate values")
    with pytest.raises(ValueError, match="tensor_parallel 8 is too many for a vocabulary of 41"):
        Ranks(0, 8).tokens(41)
    assert [Ranks(rank, 2).tokens(41) for rank in (0, 1)] == [range(24), range(24, 41)]


def test_devices_of_ranks_and_of_verifiers(folder):
    with pytest.raises(ValueError, match="with tensor_parallel 2 each rank has a GPU of its own, got device 'cuda:1'"):
        resolve_device("cuda:1", 2)
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda' or a GPU by its number, .* got 'abacus'"):
        load(folder, verifier_device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device 'cuda:1' was asked for, but torch .* sees no GPU"):
            load(folder, verifier_device="cuda:1")
