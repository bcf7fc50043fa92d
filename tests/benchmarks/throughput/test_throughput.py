"""The comparison with transformers, end to end on tiny random models; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.throughput import plain
from benchmarks.throughput.__main__ import main
from benchmarks.throughput.agreement import check_logits
from engine import LLM, BeamSearch
from tests.tiny import tiny_policy, tiny_prm


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("benchmark")
    models = ["--policy", str(tiny_policy(folder / "policy")), "--prm", str(tiny_prm(folder / "prm"))]
    small = "--threads 1 --repeats 2 --num-prompts 2 --num-answers 4 --num-new 5 --num-problems 1 --budget 4 --width 2"
    status = main([*models, *small.split(), "--cost", "2,4", "--json", str(folder / "out" / "report.json")])
    assert status == 0
    return json.loads((folder / "out" / "report.json").read_text())


def test_both_sides_of_best_of_n_make_the_same_number_of_tokens(report):
    for dtype in ("float32", "bfloat16"):
        runs = report["best_of_n"][dtype]["runs"]
        assert {side: [run["num_tokens"] for run in runs[side]] for side in runs} == dict.fromkeys(
            ("theirs", "ours", "ours_batched"), [2 * 4 * 5] * 2
        )


def test_the_headlines_are_ratios_of_the_rates_beside_them(report):
    assert report["best_of_n"]["speedup"] == report["best_of_n"]["float32"]["speedup"]
    for figures in (report["best_of_n"]["float32"], report["best_of_n"]["bfloat16"], report["beam"]):
        rate = figures["theirs_tokens_per_second"]
        assert figures["speedup"] == pytest.approx(figures["ours_tokens_per_second"] / rate)
        assert figures["speedup_batched"] == pytest.approx(figures["ours_batched_tokens_per_second"] / rate)


def test_a_search_makes_the_same_tokens_alone_and_in_a_batch(report):
    runs = report["beam"]["runs"]
    assert [run["num_tokens"] for run in runs["ours"]] == [run["num_tokens"] for run in runs["ours_batched"]]


def test_sharing_saves_the_prompt_of_every_answer_but_one(report):
    few, many = report["cost"]
    assert (few["num_answers"], many["num_answers"]) == (2, 4)
    assert many["kv_bytes_unshared"] == 2 * few["kv_bytes_unshared"]
    for row in report["cost"]:
        assert 0 < row["kv_bytes"] < row["kv_bytes_unshared"]
    growth = many["kv_bytes"] - few["kv_bytes"]
    assert 0 < growth < many["kv_bytes_unshared"] - few["kv_bytes_unshared"]


def test_what_does_not_agree_is_not_timed(tmp_path: Path):
    llm = LLM.load(tiny_policy(tmp_path / "ours"))
    other = plain.load(tiny_policy(tmp_path / "theirs", seed=1), torch.float32, "eager")
    with pytest.raises(ValueError, match="logits of both sides differ"):
        check_logits(llm, other, [5, 6, 7], "float32")


@pytest.mark.parametrize("num_slots", [1, 5, 8])
def test_the_plain_pipeline_selects_as_ours_does(num_slots: int):
    scores = [0.2, 0.9, 0.4, 0.9, 0.1, 0.3, 0.8, 0.5]
    search = plain.PlainBeamSearch(None, None, newline=3, eos=1, pad=1, budget=8, width=4, max_tokens=9)
    parents = search.select([plain.Beam([i], score) for i, score in enumerate(scores)], num_slots)
    ours = BeamSearch(4).select(scores, num_slots)
    assert [beam.token_ids[0] for beam in parents] == [index for index, num in ours for _ in range(num)]


def test_the_plain_pipeline_ends_every_answer(tmp_path: Path):
    search = plain.PlainBeamSearch(
        plain.load(tiny_policy(tmp_path / "policy"), torch.float32, "sdpa"),
        plain.load(tiny_prm(tmp_path / "prm", num_labels=2), torch.float32, "sdpa", is_verifier=True),
        newline=3,
        eos=1,
        pad=1,
        budget=6,
        width=2,
        max_tokens=12,
    )
    prompt = [5, 6, 7, 3]
    result = search(prompt)
    assert len(result.ended) == 6
    for beam in result.ended:
        new = beam.token_ids[len(prompt) :]
        assert 1 <= len(new) <= 12
        assert (beam.finish == "eos") == (new[-1] == 1)
        assert beam.finish != "length" or len(new) == 12


def test_the_plain_pipeline_counts_what_it_samples(tmp_path: Path):
    search = plain.PlainBeamSearch(
        plain.load(tiny_policy(tmp_path / "policy"), torch.float32, "sdpa"),
        plain.load(tiny_prm(tmp_path / "prm"), torch.float32, "sdpa", is_verifier=True),
        newline=3,
        eos=1,
        pad=1,
        budget=6,
        width=2,
        max_tokens=12,
        max_rounds=1,
    )
    result = search([5, 6, 7, 3])
    assert result.num_rounds == 1
    assert result.num_tokens == sum(len(beam.token_ids) - 4 for beam in result.ended) > 6
