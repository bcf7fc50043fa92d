"""`ttc grade` on result files of ours and of others, and searches of tasks that need a grader."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli.grade import read_pools
from engine.results import read_rows
from engine.tasks import get_task
from tests.cli.conftest import assert_refused, small_search

# As search-and-learn writes them: scores per step, answers in boxes.
ROWS = [
    {
        "problem": "Half of one?",
        "answer": r"\frac{1}{2}",
        "unique_id": "test/1.json",
        "completions": [
            r"\boxed{2}",
            r"\boxed{0.5}",
            r"\boxed{2}",
            r"so \boxed{\frac{2}{4}}",
            r"\boxed{\frac12}",
            "no",
        ],
        "scores": [[0.9, 0.1], [0.1, 0.3], [0.9, 0.2], [0.1, 0.5], [0.1, 0.2], [0.9, 0.9]],
        "pred": "ignored",
    },
    {
        "problem": "Three?",
        "answer": "3",
        "unique_id": "test/2.json",
        "completions": [r"\boxed{3.0}", r"\boxed{4}", r"\boxed{4}", r"\boxed{4}", r"\boxed{3}", r"\boxed{4}"],
        "scores": [[0.9, 0.6], [0.8, 0.1], [0.8, 0.1], [0.9, 0.2], [0.7, 0.3], [0.9, 0.7]],
    },
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def figures(ttc, tmp_path):
    """Grades rows; what `--json` holds."""

    def call(rows: list[dict], *options: object) -> dict:
        out = tmp_path / "figures.json"
        outcome = ttc("grade", write(tmp_path / "rows.jsonl", rows), "--json", out, *options)
        assert outcome.status == 0, outcome.err
        return json.loads(out.read_text())

    return call


def at(figures: dict, measure: str) -> list[float | None]:
    return [at_n[measure] for at_n in figures.values()]


def test_figures(figures):
    found = figures(ROWS)
    assert list(found) == ["1", "2", "4", "6"]
    assert at(found, "pass") == [0.5, 1.0, 1.0, 1.0]
    assert at(found, "majority") == [0.5, 0.5, 0.0, 0.5]  # at 4: a tie goes to the earliest, and 4 outvotes 3
    assert at(found, "naive") == [0.5, 1.0, 1.0, 0.5]
    assert at(found, "weighted") == [0.5, 1.0, 1.0, 0.5]
    assert found["2"]["intervals"]["pass"] == [1.0, 1.0]
    assert found["1"]["intervals"]["majority"] == [0.0, 1.0]
    assert found["1"]["num_rows"] == 2


def test_agg_strategy(figures):
    assert at(figures(ROWS, "--agg-strategy", "mean"), "naive") != at(figures(ROWS), "naive")
    assert at(figures(ROWS, "--agg-strategy", "mean"), "majority") == at(figures(ROWS), "majority")


def test_one_score_per_completion_or_none(figures):
    single = [{**row, "scores": [steps[-1] for steps in row["scores"]]} for row in ROWS]
    assert figures(single) == figures(ROWS)
    unscored = figures([{name: value for name, value in row.items() if name != "scores"} for row in ROWS])
    assert at(unscored, "majority") == at(figures(ROWS), "majority")
    assert at(unscored, "naive") == at(unscored, "weighted") == [None] * 4
    missing = [{**ROWS[1], "scores": [None, *single[1]["scores"][1:]]}]
    assert at(figures(missing), "naive") == [0.0, 0.0, 0.0, 0.0]
    assert at(figures(missing), "pass") == [1.0] * 4


def test_task_and_answer_column(figures):
    rows = [{"id": "a", "gold": "so it is\n#### 1,080", "answer": "7", "completions": ["That makes $1,080.", "7"]}]
    assert at(figures(rows, "--task", "gsm8k"), "pass") == [0.0, 1.0]
    assert at(figures(rows, "--task", "gsm8k", "--answer-column", "gold"), "pass") == [1.0, 1.0]
    assert at(figures(rows), "pass") == [0.0, 0.0]  # no box


def test_what_is_printed(ttc, tmp_path):
    file = write(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], "answer": None}, {**ROWS[0], "answer": ""}])
    outcome = ttc("grade", file)
    assert outcome.status == 0, outcome.err
    assert "majority %" in outcome.out
    assert outcome.out.splitlines()[3].split()[:3] == ["2", "100", "(100-100)"]
    assert outcome.last_line.startswith("3 rows of 2 problems, task math, scores: last, ")
    assert outcome.last_line.endswith(" answers could not be graded, 1 rows have no gold answer")


def test_intervals_are_by_problem(figures):
    one_problem = [{**ROWS[index % 2], "unique_id": "same"} for index in range(20)]
    many = [{**ROWS[index % 2], "unique_id": str(index)} for index in range(20)]
    assert figures(one_problem)["1"]["intervals"]["pass"] == [0.5, 0.5]
    low, high = figures(many)["1"]["intervals"]["pass"]
    assert 0.2 < low < 0.5 < high < 0.8


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{", ["not JSON"]),
        ("[]", ["not a JSON object", "[]"]),
        ('{"answer": "3"}', ["'completions' must be a list of one text or more, got None"]),
        ('{"answer": "3", "completions": []}', ["'completions'", "got []"]),
        ('{"answer": "3", "completions": [3]}', ["'completions'", "got [3]"]),
        ('{"completions": ["3"]}', ["no field 'answer'"]),
        ('{"answer": [3], "completions": ["3"]}', ["'answer' must be", "got [3]"]),
        ('{"answer": "3", "completions": ["3"], "scores": [1, 2]}', ["'scores'", "each of the 1 completions"]),
        ('{"answer": "3", "completions": ["3"], "scores": ["high"]}', ["'scores' must hold numbers", "got 'high'"]),
        ('{"answer": "3", "completions": ["3"], "answers": [3]}', ["'answers' must be texts or nulls", "got [3]"]),
    ],
)
def test_bad_rows(ttc, tmp_path, line, parts):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[1]) + "\n" + line + "\n")
    out = tmp_path / "figures.json"
    assert_refused(ttc("grade", file, "--json", out), f"{file}, line 2: ", *parts)
    assert not out.exists()


def test_bad_options(ttc, tmp_path):
    file = write(tmp_path / "rows.jsonl", [{**ROWS[0], "answer": None}])
    assert_refused(ttc("grade", file), f"{file} holds no row with a gold answer")
    assert_refused(ttc("grade", file, "--task", "poems"), "task must be one of", "'poems'")
    assert_refused(ttc("grade", file, "--agg-strategy", "max"), "agg_strategy must be one of", "'max'")
    assert_refused(ttc("grade", file, "--answer-column", "gold"), "line 1", "no field 'gold'")
    assert_refused(ttc("grade", tmp_path / "nowhere.jsonl"), "cannot read results from", "nowhere.jsonl")


def test_our_own_rows(ttc, models, tmp_path, figures):
    """The same vote as in the search, and answers that were cut off do not count."""
    out = tmp_path / "search.jsonl"
    outcome = ttc(*small_search(models, out, None), "--strategy", "majority", "--limit", 20, "--max-tokens", 12)
    assert outcome.status == 0, outcome.err
    rows = read_rows(out)
    assert any(None in row["answers"] for row in rows)
    found = figures(rows, "--task", "walks")
    assert found["8"]["majority"] == sum(row["correct"] for row in rows) / 20
    assert found["8"]["pass"] == sum(row["answer"] in row["answers"] for row in rows) / 20
    assert at(figures(rows), "majority") == at(found, "majority")  # the answers stand in the rows


def test_a_search_of_graded_problems(ttc, models, tmp_path):
    """Columns of a data set, its gold answers, and the grader's verdicts in the rows."""
    file = tmp_path / "test.jsonl"
    lines = [{"question": f"{n};+3;*4", "answer": f"so it is\n#### {n},000"} for n in range(1, 9)]
    lines.append({"question": "b4?", "answer": None})
    write(file, lines)
    arguments = [*small_search(models, tmp_path / "rows.jsonl", None), "--strategy", "majority", "--limit", 9]
    outcome = ttc(*arguments, "--task", "gsm8k", file)
    assert outcome.status == 0, outcome.err
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["answer"] for row in rows] == [*(f"{n}000" for n in range(1, 9)), None]
    assert rows[8]["correct"] is None
    assert all(row["correct"] is (row["pred"] == row["answer"]) for row in rows[:8])
    assert any(row["pred"] is not None for row in rows)

    columns = ["--problem-column", "question", "--answer-column", "answer"]
    refused = ttc(*arguments, *columns, file, "--overwrite")
    assert_refused(refused, f"{file}, line 9: no gold answer under 'answer'")
    write(file, [{"q": "b4?", "a": 2, "problem": "d1?", "answer": 10}])
    assert ttc(*arguments, file, "--overwrite").status == 0
    assert [(row["problem"], row["answer"]) for row in read_rows(tmp_path / "rows.jsonl")] == [("d1?\n", "10")]
    named = ttc(*arguments, "--problem-column", "q", "--answer-column", "a", file, "--overwrite")
    assert named.status == 0, named.err
    assert [(row["problem"], row["answer"]) for row in read_rows(tmp_path / "rows.jsonl")] == [("b4?\n", "2")]


@pytest.mark.parametrize("option", ["--problem-column", "--answer-column"])
def test_columns_have_no_effect_without_rows(ttc, models, tmp_path, option):
    outcome = ttc(*small_search(models, tmp_path / "x"), option, "text")
    assert_refused(outcome, f"{option} has no effect without a problem file, got 'text'")


def test_a_math_task_has_no_step_oracle(ttc, models, tmp_path):
    file = write(tmp_path / "x.jsonl", [{"problem": "b4?", "answer": "2"}])
    arguments = [*small_search(models, tmp_path / "rows.jsonl", None), "--verifier", "oracle", "--task", "gsm8k", file]
    assert_refused(ttc(*arguments), "verifier 'oracle' cannot judge the steps of task gsm8k")
    assert_refused(ttc(*small_search(models, tmp_path / "rows.jsonl"), "--task", "math"), "task math has no problems")


def test_problems_with_the_same_gold_answer_have_times_of_their_own(tmp_path):
    asked = []

    def compare(pairs, problems):
        asked.extend(problems)
        return [True] * len(pairs)

    rows = [{"id": name, "answer": "x+1", "completions": [r"\boxed{1+x}"]} for name in ("first", "second")]
    read_pools(str(write(tmp_path / "rows.jsonl", rows)), replace(get_task("math"), compare=compare), "last", None)
    assert asked == ["first", "second"]
