"""The benchmark of rollouts and scoring: what it counts, and its report."""

from __future__ import annotations

import json

import pytest

from benchmarks.throughput import labelling
from engine import Engine
from engine.training.rollouts import RolloutRecipe, generate


def test_all_drawn_tokens_of_rollouts_count():
    llm = Engine.load("home").policy
    recipe = RolloutRecipe(num_questions=2, num_samples=2, num_rollouts=1)
    num_tokens = labelling.rollouts(llm, recipe)
    rows = [row for _, labelled in generate(llm, recipe) for row in labelled.rows]
    steps = [[len(step) for step in row["token_ids"]] for row in rows]
    own = sum(map(sum, steps))
    assert own < num_tokens  # the answers are drawn, and one rollout of every step that is not the last
    assert "sample" not in vars(llm)


def test_a_report(tmp_path, capsys):
    few = ["--num-questions", "1", "--num-samples", "1", "--num-rollouts", "1", "--num-problems", "1"]
    path = tmp_path / "labelling.json"
    assert labelling.main([*few, "--num-answers", "2", "--repeats", "1", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["runs"]["engine"][0]["num_tokens"] == 2 * labelling.NUM_NEW
    assert report["share"]["engine"] == 1.0
    assert set(report["share"]) == {"engine", "rollouts", "workers", "scored"}
    assert "share of the engine's" in capsys.readouterr().out


def test_bad_arguments(capsys):
    with pytest.raises(SystemExit):
        labelling.main(["--num-answers", "0"])
    assert "--num-answers must be at least 1, got 0" in capsys.readouterr().err
