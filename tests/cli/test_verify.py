"""`ttc verify`: figures of scores that are known, and verifiers that score rows as a search would."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from engine.cli.verify import score_answers
from engine.engine import Engine
from engine.reports.verifier import ScoredAnswer, verifier_figures
from engine.search import BestOfN
from engine.training.rollouts import RolloutRecipe, generate
from engine.verifiers.figures import best_threshold, first_errors, reliability, roc_points
from tests.cli.conftest import assert_refused
from tests.tiny import tiny_prm


def test_reliability_of_known_scores():
    found = reliability([0.05, 0.15, 0.15, 1.0, 0.3], [0.0, 1.0, 0.0, 1.0, 0.5])
    assert [each.count for each in found.bins] == [1, 2, 0, 1, 0, 0, 0, 0, 0, 1]
    assert (found.bins[1].mean_score, found.bins[1].share_good) == pytest.approx((0.15, 0.5))
    assert found.bins[2].mean_score is None
    assert found.ece == pytest.approx((0.05 + 2 * 0.35 + 0.2 + 0.0) / 5)
    assert found.brier == pytest.approx((0.05**2 + 0.85**2 + 0.15**2 + 0.0 + 0.2**2) / 5)
    assert len(reliability([0.5], [1.0], num_bins=4).bins) == 4


def test_roc_points_pass_ties_together():
    assert roc_points([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == [(0, 0), (0, 0.5), (0.5, 1), (1, 1)]
    with pytest.raises(ValueError, match="got 2 good of 2"):
        roc_points([0.9, 0.5], [True, True])


def test_first_errors_by_hand():
    scores, places = [[0.9, 0.2, 0.1], [0.9, 0.8], [0.3, 0.9], [0.9, 0.9, 0.9]], [1, -1, -1, 2]
    found = first_errors(scores, places, 0.5)
    assert (found.num_wrong, found.num_right, found.found, found.cleared) == (2, 2, 0.5, 0.5)
    assert found.f1 == 0.5
    assert first_errors(scores, places, 0.0).f1 == 0.0
    better = best_threshold(scores, places)
    assert 0.2 < better <= 0.3
    assert first_errors(scores, places, better).cleared == 1.0


def answers(rng: np.random.Generator, noise: float, num_questions: int = 100) -> list[ScoredAnswer]:
    """Four steps each, of which the score says wrong from the first wrong one on, with noise."""
    made = []
    for question in range(num_questions):
        for _ in range(4):
            place = int(rng.integers(-1, 4))
            labels = [float(place < 0 or index < place) for index in range(4)]
            scores = np.clip([0.1 + 0.8 * label + noise * rng.normal() for label in labels], 0, 1)
            made.append(ScoredAnswer(str(question), tuple(scores.tolist()), tuple(labels), place))
    return made


def test_a_better_verifier_has_better_figures():
    sharp, dull = (verifier_figures(answers(np.random.default_rng(0), noise), judges="steps") for noise in (0.05, 0.5))
    assert sharp["answers"]["auc"] == sharp["answers"]["auc_within_questions"] == 1.0
    assert sharp["first_wrong"]["f1"] > 0.98  # a quantile of one half's scores, not quite between the other half's
    assert sharp["first_wrong"]["num_wrong"] + sharp["first_wrong"]["num_right"] == 200  # the other half alone
    for part in ("answers", "steps"):
        assert dull[part]["auc"] < sharp[part]["auc"]
        assert dull[part]["brier"] > sharp[part]["brier"]
    assert dull["first_wrong"]["f1"] < 0.9
    other = verifier_figures(answers(np.random.default_rng(0), 0.5), judges="steps", seed=1)
    assert other["first_wrong"] != dull["first_wrong"]
    assert other["answers"] == dull["answers"]


def test_what_cannot_be_measured():
    right = ScoredAnswer("q", (0.5, 0.5), (1.0, 1.0), -1)
    with pytest.raises(ValueError, match="got 1 right ones of 1"):
        verifier_figures([right], judges="steps")
    wrong = ScoredAnswer("q", (0.5, 0.4), (1.0, 0.0), 1)
    assert verifier_figures([right, wrong], judges="steps")["first_wrong"] is None  # no other half
    whole = verifier_figures([right, wrong], judges="answers")
    assert whole["steps"] is None
    assert whole["answers"]["auc_within_questions"] == 1.0


def test_a_rejected_step_is_no_answer():
    right, wrong = ScoredAnswer("q", (0.5, 0.5), (1.0, 1.0), -1), ScoredAnswer("q", (0.5, 0.4), (1.0, 0.0), 1)
    rejected = ScoredAnswer("q", (0.9,), (0.0,), 0, is_ended=False)
    plain, found = (verifier_figures(rows, judges="steps") for rows in ([right, wrong], [right, wrong, rejected]))
    assert (found["answers"], found["num_answers"]) == (plain["answers"], 2)
    assert found["steps"]["count"] == plain["steps"]["count"] + 1


@pytest.fixture(scope="module")
def engine(models) -> Engine:
    return Engine.load(models.policy, prm=models.prm, trunk_head=models.trunk_head, num_blocks=16384)


@pytest.fixture(scope="module")
def rows(engine) -> list[dict]:
    recipe = RolloutRecipe(num_questions=6, num_samples=4, num_rollouts=0, max_tokens=60, seed=3)
    return [row for _, labelled in sorted(generate(engine.policy, recipe)) for row in labelled.rows]


@pytest.mark.parametrize("name", ["prm", "trunk"])
def test_rows_are_scored_as_a_search_scores_them(engine, name):
    results = engine.search(["?3?5?=f", "d1?"], BestOfN(), 8, verifier=name, max_tokens=60)
    candidates = [(r.problem, c) for r in results for c in r.candidates if c.finish == "eos"]
    assert candidates
    rows, kept = [], []
    for problem, candidate in candidates:
        steps = candidate.text.splitlines(keepends=True)
        num_tokens = len(engine.policy.encode(candidate.text)) + 1
        if steps and (num_tokens, len(steps)) == (candidate.num_tokens, len(candidate.scores)):  # else texts tell less
            rows.append({"prompt": problem.prompt, "completions": steps, "labels": [0.0] * len(steps)})
            kept.append(candidate)
    assert len(kept) >= 2
    scored = score_answers(engine, engine.resolve_verifier(name), rows)
    for answer, candidate in zip(scored, kept, strict=True):
        assert answer.scores == pytest.approx(candidate.scores, abs=1e-5)


def test_the_report(ttc, models, rows, tmp_path):
    file, page, figures = tmp_path / "rows.jsonl", tmp_path / "page.html", tmp_path / "figures.json"
    labelled = [{**row, "labels": [*row["labels"][:-1], float(number % 3 == 0)]} for number, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    verify = ["verify", file, "--policy", models.policy, "--prm", models.prm, "--out", page, "--json", figures]
    outcome = ttc(*verify)
    assert outcome.status == 0, outcome.err
    assert "AUC within questions" in outcome.out
    assert "first wrong step" in outcome.out
    found = json.loads(figures.read_text())
    assert found["num_answers"] == len(rows)
    assert found["verifier"] == "prm"
    assert sum(each["count"] for each in found["steps"]["reliability"]) == sum(len(row["labels"]) for row in rows)
    text = page.read_text()
    assert text.count("<svg") == 4
    assert f"the best-scored answer of {found['searched']['sizes'][-1]} is right in" in outcome.out
    assert f"{found['answers']['auc']:.3f}" in text
    by_labels = ttc(*verify, "--task", "gsm8k")
    assert json.loads(figures.read_text())["steps"]["first_wrong_pairs"] > 0 == found["steps"]["first_wrong_pairs"]
    (line,) = [line for line in by_labels.out.splitlines() if "pairs at the same place" in line]
    assert line.split()[-2:] == ["–", str(json.loads(figures.read_text())["steps"]["first_wrong_pairs"])]
    assert "AUC of first wrong steps" in page.read_text()
    trunk = ttc(*verify, "--verifier", "trunk", "--trunk-head", models.trunk_head, "--limit", 9)
    assert trunk.status == 0, trunk.err
    assert trunk.last_line.startswith("9 answers to ")
    assert json.loads(figures.read_text())["answers"]["mean_score"] != found["answers"]["mean_score"]
    assert_refused(ttc(*verify, "--verifier", "orm"), "no ORM is loaded")
    assert_refused(ttc(*verify, "--verifier", "guess"), "prm, trunk, orm", "'guess'")
    assert_refused(ttc(*verify, "--limit", 0), "limit must be at least 1", "got 0")
    assert_refused(ttc("verify", tmp_path / "none"), "no rollouts at")
    other = tiny_prm(tmp_path / "other", seed=7)
    assert ttc(*[other if part == models.prm else part for part in verify]).status == 0
    assert json.loads(figures.read_text())["answers"] != found["answers"]


@pytest.mark.parametrize(("is_exact", "places"), [(True, [1, -1]), (False, [-1, 0])])
def test_first_wrong_steps_are_the_tasks_where_it_can_judge_them(engine, monkeypatch, is_exact, places):
    """Whatever the task's name is."""
    judged = {"1\n2": 1, "3\n4": -1}
    task = replace(
        engine.task, name="maze", is_exact=is_exact, first_wrong_step=lambda problem, steps: judged["".join(steps)]
    )
    monkeypatch.setattr(engine, "task", task)
    rows = [
        {"prompt": "1;+1\n", "completions": ["1\n", "2"], "labels": [0.5, 1.0]},
        {"prompt": "1;+1\n", "completions": ["3\n", "4"], "labels": [0.0, 0.0]},
    ]
    answers = score_answers(engine, engine.resolve_verifier("prm"), rows)
    assert [answer.first_wrong for answer in answers] == places


def test_a_path_to_a_rejected_step_is_scored_without_an_end(engine):
    rows = [
        {"prompt": "d1?\n", "completions": steps, "labels": [0.5] * len(steps)} for steps in (["3\n"], ["3\n", "4"])
    ]
    path, answer = score_answers(engine, engine.resolve_verifier("prm"), rows)
    assert (path.is_ended, answer.is_ended) == (False, True)
    assert path.scores == pytest.approx(answer.scores[:1], abs=1e-5)


def test_more_samples(ttc, search, models, tmp_path):
    """Without labelled answers no model is loaded."""
    search("--strategy", "best-of-n", "--limit", 6, out="pool.jsonl")
    search("--strategy", "beam", "--limit", 6, out="beam.jsonl")
    pool, beam, page, figures = (tmp_path / name for name in ("pool.jsonl", "beam.jsonl", "page.html", "f.json"))
    verify = ["verify", "--policy", tmp_path / "no model", "--out", page, "--json", figures]
    outcome = ttc(*verify, "--results", f"{pool},{beam}")
    assert outcome.status == 0, outcome.err
    assert "the best-scored answer of 8 is right in" in outcome.out
    assert "beam at 8: right in" in outcome.out
    assert outcome.last_line == f"6 pools of 6 questions: {page}"
    assert json.loads(figures.read_text())["searched"]["sizes"] == [1, 4, 8]
    assert "verifier" not in json.loads(figures.read_text()), "rows do not say what scored them"
    assert page.read_text().count("<svg") == 1
    assert ttc(*verify, "--results", pool, "--limit", 2).last_line.startswith("2 pools of 2")
    assert_refused(ttc(*verify, "--results", beam), "no graded rows of --strategy best-of-n", "got 6")
    assert_refused(ttc(*verify), "got neither")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"completions": [], "labels": []}, "an answer without a step"),
        ({"completions": ["a", "b"], "labels": [1, 0], "token_ids": [[1]]}, "line 1: token_ids must be"),
        ({"completions": ["a"], "labels": [1], "history": [3]}, "line 1: history must be"),
    ],
)
def test_rows_that_cannot_be_scored(ttc, tmp_path, row, words):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "b4?\n", **row}) + "\n")
    assert_refused(ttc("verify", file, "--out", tmp_path / "page.html"), str(file), words)
