"""Labelled steps of TRL, Math-Shepherd and PRM800K, in and out, and rollouts of any task that can grade."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.tasks import get_task
from engine.training.prm import PRMRecipe
from engine.training.rollouts import RolloutRecipe, questions
from engine.training.stepwise import read_steps, read_stepwise, write_stepwise
from tests.cli.conftest import assert_refused, models, ttc

__all__ = ["models", "ttc"]

MATH_SHEPHERD = {
    "input": "2+3*4? Step 1: 3*4=12 ки\nStep 2: 2+12=15 ки\nStep 3: The answer is: 15 ки",
    "label": "2+3*4? Step 1: 3*4=12 +\nStep 2: 2+12=15 -\nStep 3: The answer is: 15 -",
    "task": "GSM8K",
}


def completion(text: str, rating: int | None) -> dict:
    return {"text": text, "rating": rating, "flagged": None}


def step(chosen: int | None, *completions: dict, human: str | None = None) -> dict:
    human_completion = None if human is None else completion(human, None)
    return {"completions": list(completions), "human_completion": human_completion, "chosen_completion": chosen}


PRM800K = {
    "question": {"problem": "2+3*4?", "ground_truth_answer": "14"},
    "label": {
        "steps": [
            step(1, completion("5*4=20", -1), completion("3*4=12", 1), completion("skipped", None)),
            step(0, completion("So far so good.", 0)),
            step(None, completion("2+12=15", -1), human="2+12=14"),
            step(None, completion("It is 14.", 1), completion("It is 15.\n\n# Answer\n\n15", -1)),
        ],
        "finish_reason": "found_error",
    },
}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_stepwise_rows_come_back(tmp_path):
    rows = [
        {"prompt": "1;+1\n", "completions": ["1+1=2\n", "2=2"], "labels": [0.25, 1.0], "token_ids": [[1], [2]]},
        {"prompt": "2;+1\n", "completions": ["2+1=3"], "labels": [0.5]},
    ]
    file = write(tmp_path / "ours.jsonl", *rows)
    assert read_stepwise(file) == read_steps(file) == rows
    write_stepwise(rows, tmp_path / "trl.jsonl")
    assert [json.loads(line) for line in (tmp_path / "trl.jsonl").read_text().splitlines()] == [
        {"prompt": "1;+1\n", "completions": ["1+1=2", "2=2"], "labels": [0.25, 1.0]},
        {"prompt": "2;+1\n", "completions": ["2+1=3"], "labels": [0.5]},
    ]
    back = read_steps(tmp_path / "trl.jsonl", separator="\\n")
    assert back == [{name: value for name, value in row.items() if name != "token_ids"} for row in rows]
    write_stepwise(rows, tmp_path / "hard.jsonl", threshold=0.5)
    hard = read_stepwise(tmp_path / "hard.jsonl")
    assert [row["labels"] for row in hard] == [[0.0, 1.0], [1.0]]
    assert '"labels": [false, true]' in (tmp_path / "hard.jsonl").read_text()
    with pytest.raises(ValueError, match=r"threshold must be within 0..1, got 50"):
        write_stepwise(rows, tmp_path / "hard.jsonl", threshold=50)


def test_math_shepherd(tmp_path):
    file = write(tmp_path / "rows.jsonl", MATH_SHEPHERD)
    steps = ["Step 1: 3*4=12\n", "Step 2: 2+12=15\n", "Step 3: The answer is: 15"]
    expected = {"prompt": "2+3*4?\n", "completions": steps, "labels": [1.0, 0.0, 0.0]}
    assert read_steps(file, "math-shepherd") == [expected]
    (double,) = read_steps(file, "math-shepherd", separator="\\n\\n")
    assert double["completions"][0] == "Step 1: 3*4=12\n\n"


@pytest.mark.parametrize(("neutral", "label"), [("good", 1.0), ("bad", 0.0)])
def test_prm800k(tmp_path, neutral, label):
    """The alternatives that nobody went on from, and the path; an alternative without a rating is left out.

    All end as steps do, but the one that states an answer.
    """
    rows = read_steps(write(tmp_path / "rows.jsonl", PRM800K), "prm800k", neutral=neutral)
    path = ["3*4=12\n", "So far so good.\n", "2+12=14\n"]
    assert [(row["completions"], row["labels"]) for row in rows] == [
        (["5*4=20\n"], [0.0]),
        ([*path[:2], "2+12=15\n"], [1.0, label, 0.0]),
        ([*path, "It is 14.\n"], [1.0, label, 1.0, 1.0]),
        ([*path, "It is 15.\n\n# Answer\n\n15"], [1.0, label, 1.0, 0.0]),
        (path, [1.0, label, 1.0]),
    ]
    assert {row["prompt"] for row in rows} == {"2+3*4?\n"}


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        ("stepwise", {"prompt": "1", "completions": ["2"]}, "labels"),
        ("stepwise", {"prompt": "1", "completions": ["2"], "labels": [1, 0]}, "one label within 0..1 per completion"),
        ("stepwise", {"prompt": "1", "completions": ["2"], "labels": [2]}, "one label within 0..1 per completion"),
        ("stepwise", {"prompt": "1", "completions": [2], "labels": [1]}, "must be texts"),
        ("stepwise", {"prompt": "1", "completions": "2", "labels": [1]}, "must be texts"),
        ("stepwise", {"prompt": "1\ud800", "completions": ["2"], "labels": [1]}, "not valid Unicode"),
        ("stepwise", {"prompt": "1", "completions": ["2\ud800"], "labels": [1]}, "not valid Unicode"),
        ("stepwise", ["prompt"], "not a row of this format"),
        ("math-shepherd", {"input": "Step 1: a ки", "label": "Step 1: a ?"}, "no . or - in place of the tag of step 1"),
        ("math-shepherd", {"input": "Step 1: a", "label": "Step 1: a"}, "no labelled step"),
        ("math-shepherd", {"input": "a ки", "label": "a +"}, "none that begins with 'Step 1:'"),
        ("math-shepherd", {"input": "Step 1: a ки"}, "label"),
        ("prm800k", {"question": {"problem": "a"}}, "label"),
        (
            "prm800k",
            {**PRM800K, "label": {"steps": [step(0, completion("a", 5))]}},
            "a rating must be -1, 0 or 1, got 5",
        ),
        ("prm800k", {**PRM800K, "label": {"steps": [step(3, completion("a", 1))]}}, "IndexError"),
    ],
)
def test_bad_rows_are_named(tmp_path, format, row, message):
    good = {"stepwise": {"prompt": "1", "completions": ["2"], "labels": [1]}, "prm800k": PRM800K}
    file = write(tmp_path / "rows.jsonl", good.get(format, MATH_SHEPHERD), row)
    with pytest.raises(ValueError, match=rf"rows.jsonl, line 2: .*{message}"):
        read_steps(file, format, neutral="good" if format == "prm800k" else None)


def test_files_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"no rollouts at '.*nowhere'"):
        read_stepwise(tmp_path / "nowhere")
    empty = write(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match=r"empty.jsonl holds no rows"):
        read_stepwise(empty)
    unrated = write(tmp_path / "unrated.jsonl", {**PRM800K, "label": {"steps": [step(0, completion("a", None))]}})
    with pytest.raises(ValueError, match=r"unrated.jsonl holds no rows"):
        read_steps(unrated, "prm800k", neutral="bad")


def test_options_of_a_prm(ttc, tmp_path):
    with pytest.raises(ValueError, match=r"format must be one of .*, got 'csv'"):
        PRMRecipe(format="csv")
    with pytest.raises(ValueError, match="separator must be a text"):
        PRMRecipe(step_separator="")
    train = ["train", "prm", "--out", tmp_path / "prm", "--rollouts", write(tmp_path / "rows.jsonl", PRM800K)]
    assert_refused(ttc(*train, "--format", "prm800k"), "prm800k needs neutral, good or bad, for its rating 0, got None")
    assert_refused(ttc(*train, "--format", "prm800k", "--neutral", "maybe"), "got 'maybe'")
    assert_refused(ttc(*train, "--neutral", "good"), "neutral has no effect with format stepwise")


def test_a_prm_is_trained_on_other_formats(ttc, models, tmp_path, monkeypatch):
    rows = [{**PRM800K, "question": {"problem": f"2+{n}*4?"}} for n in range(10)]
    train = ["train", "prm", "--base", models.policy, "--rollouts", write(tmp_path / "rows.jsonl", *rows)]
    train += ["--format", "prm800k", "--num-updates", "2", "--held-out", "0.5"]
    lines = []
    for number, more in enumerate((["good"], ["bad"], ["good", "--step-separator", "|"])):
        out, work = tmp_path / f"prm{number}", tmp_path / f"work{number}"
        outcome = ttc(*train, "--neutral", *more, "--out", out, "--work", work)
        assert outcome.status == 0, outcome.err
        lines.append(outcome.last_line)
    assert "held out steps 75" in lines[0]
    assert "mean label 0.8," in lines[0]  # 12 of 15
    assert "mean label 0.5333," in lines[1]  # 8 of 15: in four answers of the five the neutral step is bad
    assert "mean label 0.8," in lines[2]
    assert lines[2].split(",")[1] != lines[0].split(",")[1]  # the loss, on other tokens


def test_rollouts_of_a_task_that_grades(ttc, models, tmp_path):
    """A problem file with the task's columns, and labels by the task's grader, in our form and in TRL's."""
    file, out, trl = tmp_path / "train.jsonl", tmp_path / "rollouts.jsonl", tmp_path / "trl.jsonl"
    write(file, *({"question": f"{n};+3", "answer": "#### unknown"} for n in range(8)))
    counts = ["--num-questions", 6, "--num-samples", 4, "--num-rollouts", 4, "--max-tokens", 16]
    arguments = ["rollouts", "--policy", models.policy, "--num-blocks", 16384, "--out", out, *counts]
    arguments += ["--task", "gsm8k", "--problems", file]
    outcome = ttc(*arguments)
    assert outcome.status == 0, outcome.err
    assert outcome.last_line.startswith("6 questions")
    blind = read_stepwise(out)
    assert {label for row in blind for label in row["labels"]} == {0.0}
    assert all(sum(map(len, row["token_ids"])) <= 16 for row in blind)

    # What an answer states becomes its question's gold answer, in another spelling.
    stated = {row["prompt"]: get_task("gsm8k").extract("".join(row["completions"])) for row in blind}
    assert any(stated.values())
    golds = {prompt: f"so it is\n#### ${answer or 'unknown'}" for prompt, answer in stated.items()}
    write(file, *({"question": f"{n};+3", "answer": golds.get(f"{n};+3", "#### 1")} for n in range(8)))
    assert_refused(ttc(*arguments), "problems was")
    outcome = ttc(*arguments, "--overwrite", "--trl", trl, "--trl-threshold", 0.5)
    assert outcome.status == 0, outcome.err
    ours, theirs = read_stepwise(out), read_steps(trl, separator="\n")
    assert [row["completions"] for row in theirs] == [row["completions"] for row in ours]
    assert [row["completions"] for row in theirs] == [row["completions"] for row in blind]
    assert [row["labels"] for row in theirs] == [[float(label >= 0.5) for label in row["labels"]] for row in ours]
    for row in ours:
        answer = get_task("gsm8k").extract("".join(row["completions"]))
        assert row["labels"][-1] == float(answer is not None and answer == stated[row["prompt"]])
    assert_refused(ttc(*arguments, "--trl-threshold", 0.5), "--trl-threshold has no effect without --trl, got 0.5")


def test_questions_of_a_recipe(tmp_path):
    file = write(tmp_path / "rows.jsonl", {"q": "1+1?", "a": "2"}, {"q": "2+2?", "a": "4"})
    recipe = RolloutRecipe(task="math", problems=str(file), problem_column="q", answer_column="a")
    assert [(each.prompt, each.answer) for each in questions(recipe)] == [("1+1?", "2"), ("2+2?", "4")]
    assert [each.id for each in questions(RolloutRecipe(num_questions=2, split="test"))] == [
        "walks/test/0/0",
        "walks/test/0/1",
    ]
    with pytest.raises(ValueError, match="line 1: rollouts are labelled by the gold answer, and there is none"):
        questions(RolloutRecipe(task="math", problems=str(file), problem_column="q"))
    with pytest.raises(ValueError, match="split has no effect with a problem file, got 'test'"):
        questions(RolloutRecipe(problems=str(file), split="test"))
    with pytest.raises(ValueError, match="problem_column has no effect without problems to read, got 'q'"):
        RolloutRecipe(problem_column="q")
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        RolloutRecipe(max_tokens=0)
