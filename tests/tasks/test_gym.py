"""Tasks of reasoning-gym: its items and its scores, and what becomes of answers that are out to harm."""

import json
import os
import subprocess
import sys

import pytest

from engine.cli import main
from engine.results import read_rows
from engine.tasks import get_task, take_problems
from engine.tasks.gym import extract_answer
from tests.docs.builders import word_policy

HANDFUL = ["basic_arithmetic:max_terms=3", "countdown", "mini_sudoku", "graph_color", "word_ladder", "pool_matrix"]

# Their own items and scores, in a process of their own: importing them takes a second, and one seeds numpy.
REFERENCE = """
import json, sys
import reasoning_gym
for name, options, seed, answers in json.load(sys.stdin):
    data = reasoning_gym.create_dataset(name, seed=seed, size=1, **options)
    item = data[0]
    print(json.dumps([item["question"], item["answer"], [data.score_answer(answer, item) for answer in answers]]))
"""


def _reference(asked: list) -> list:
    program = [sys.executable, "-c", REFERENCE]
    ordered = os.environ | {"PYTHONHASHSEED": "0"}  # word_ladder follows the order of a set
    done = subprocess.run(program, input=json.dumps(asked), capture_output=True, text=True, env=ordered, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _reference_answer(task, problem) -> str | None:
    return json.loads(problem.answer)["answer"] if task.compare else problem.answer


def test_items_and_verdicts_are_those_of_reasoning_gym():
    asked, ours = [], []
    for name in HANDFUL:
        task = get_task(f"gym:{name}")
        for problem in take_problems(task, "test", 2):
            reference = _reference_answer(task, problem)
            right = reference or ""
            answers = [right, f"{right} ", right[::-1], right[:-1], "1", "yes", "[[1, 2", "{}", "((1/0", "answer is"]
            base, _, options = name.partition("=")
            base, *option = base.split(":")
            kwargs = {option[0]: int(options)} if option else {}
            asked.append((base, kwargs, problem.metadata["seed"], answers))
            verdicts = task.are_right([(answer, problem.answer) for answer in answers])
            ours.append([problem.prompt, reference, verdicts])
    for (question, answer, scores), (prompt, reference, verdicts) in zip(_reference(asked), ours, strict=True):
        assert (question.strip(), answer) == (prompt, reference)
        assert [score >= 1 for score in scores] == verdicts
        assert verdicts[0] is (reference is not None), "a reference answer is right"


def test_problems_depend_on_split_seed_and_index_alone():
    task = get_task("gym:chain_sum")
    test = take_problems(task, "test", 4)
    assert take_problems(task, "test", 2) == test[:2]
    assert len({problem.id for problem in test}) == 4
    others = [
        *take_problems(task, "train", 4),
        *take_problems(task, "validation", 4),
        *take_problems(task, "test", 4, 1),
    ]
    seeds = [problem.metadata["seed"] for problem in (*test, *others)]
    assert len(set(seeds)) == len(seeds)
    assert max(seed for seed in seeds[4:8]) < min(seeds[:4]), "splits have their own ranges of seeds"
    assert take_problems(get_task("gym:chain_sum:min_terms=6"), "test", 4) != test


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gym", ["gym:NAME"]),
        ("gym:chain_sums", ["'chain_sums'", "did you mean chain_sum"]),
        ("gym:composite", ["composite", "name one data set"]),
        ("gym:chain_sum:max_term=3", ["'max_term'", "it has max_terms"]),
        ("gym:chain_sum:max_terms", ["name=value", "'max_terms'"]),
        ("gym:chain_sum:max_terms=3.5", ["max_terms needs a value like '6'", "'3.5'"]),
        ("gym:chain_sum:max_terms=1", ["max_terms must be >= min_terms", "'max_terms=1'"]),
        ("gym:chain_sum:max_terms=3:max_terms=4", ["given twice", "'4'"]),
        ("gym:chain_sum:seed=3", ["seed is no option", "'seed=3'"]),
        ("gym:word_sorting:transformation=up", ["one of lowercase, uppercase", "'up'"]),
        ("gym:rearc:board_format_opts=x", ["board_format_opts", "'x'"]),
        (f"gym:chain_sum:max_digits={'9' * 5000}", ["max_digits needs", "'999"]),
    ],
)
def test_what_reasoning_gym_lacks_is_refused_by_name(name, parts):
    with pytest.raises(ValueError, match=r"^(a )?task") as raised:
        get_task(name)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message


def test_gold_answers_of_something_else_are_refused():
    task = get_task("gym:countdown")
    (problem,) = take_problems(task, "test", 1)
    with pytest.raises(ValueError, match=r"must be like.*got '42'"):
        task.as_problem({"problem": "?", "answer": "42"}, 0)
    assert task.as_problem({"problem": problem.prompt, "answer": problem.answer}, 0).answer == problem.answer
    with pytest.raises(ValueError, match="other options or another version"):
        get_task("gym:countdown:max_numbers=4").are_right([("1", problem.answer)])
    with pytest.raises(ValueError, match=r"oracle.*gym:countdown"):
        task.first_wrong_step(problem, ["1"])


def test_an_answer_that_is_evaluated_cannot_write_or_start_anything(tmp_path):
    """reasoning-gym evaluates answers to these data sets."""
    made = tmp_path / "made"
    keep = tmp_path / "keep"
    keep.write_text("here")
    calls = [
        f"__import__('os').system('touch {made}')",
        f"open({str(made)!r}, 'w')",
        f"__import__('os').remove({str(keep)!r})",
        "__import__('subprocess').run(['true'])",
        "__import__('socket').socket()",
        "__import__('os')._exit(0)",
    ]
    for name in ("gym:n_queens", "gym:spiral_matrix"):
        task = get_task(name)
        (problem,) = take_problems(task, "test", 1)
        right = json.loads(problem.answer)["answer"]
        verdicts = task.are_right([(call, problem.answer) for call in [*calls, right]])
        assert verdicts == [False] * 5 + [None, True], "what ends its process gets no verdict"
    assert not made.exists()
    assert keep.read_text() == "here"


def test_an_answer_that_takes_for_ever_gets_no_verdict(monkeypatch):
    monkeypatch.setattr("engine.tasks.gym._SCORE_SECONDS", 0.5)
    task = get_task("gym:n_queens")
    (problem,) = take_problems(task, "validation", 1)
    # The scorer takes the lack of memory for an answer that cannot be read.
    asked = ["(lambda f: f(f))(lambda f: [0 for _ in iter(int, 1)])", "[0] * 10**10", "9" * 30_000]
    assert task.are_right([(answer, problem.answer) for answer in asked]) == [None, False, False]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>it is 3</think> So\n<answer> 4 </answer> it is", "4"),
        (r"\boxed{3}, no: \boxed{\text{Zoey is a knave.}}", "Zoey is a knave."),
        (r"\boxed{3} <answer>4</answer>", "4"),
        ("12 + 3 = 15\nThe answer is 15.", "15"),
        ("12 + 3 = 15\n15\n", "15"),
        (" 15", "15"),
        ("", None),
        ("<answer></answer>", None),
    ],
)
def test_extraction(completion, answer):
    assert extract_answer(completion) == answer


def test_a_grid_is_the_last_paragraph():
    task = get_task("gym:mini_sudoku")
    assert task.extract("Here it is.\n\n1 2\n3 4\n") == "1 2\n3 4"


def test_search_rollouts_and_training(tmp_path, capsys):
    policy = word_policy(tmp_path / "policy")
    task = "gym:coin_flip:max_trials=4"
    small = ["--policy", str(policy), "--task", task, "--max-tokens", "12", "--num-blocks", "4096"]
    searched, rolled = tmp_path / "rows.jsonl", tmp_path / "rollouts.jsonl"
    strategy = ["--strategy", "majority", "--budget", "4", "--limit", "3", "--out", str(searched)]
    assert main(["search", *small, *strategy]) == 0
    rows = read_rows(searched)
    assert [row["id"] for row in rows] == [f"gym:coin_flip/test/0/{index}" for index in range(3)]
    assert all(row["correct"] in (True, False) for row in rows)
    problems = take_problems(get_task(task), "test", 3)
    assert [row["answer"] for row in rows] == [problem.answer for problem in problems]

    amount = ["--num-questions", "6", "--num-samples", "2", "--num-rollouts", "2"]
    assert main(["rollouts", *small, *amount, "--out", str(rolled)]) == 0
    asked = {json.loads(line)["prompt"] for line in rolled.read_text().splitlines()}
    assert {problem.prompt for problem in take_problems(get_task(task), "train", 6)} >= asked
    out, work = tmp_path / "prm", tmp_path / "work"
    training = ["--rollouts", str(rolled), "--num-updates", "2", "--out", str(out), "--work", str(work)]
    assert main(["train", "prm", "--base", str(policy), *training]) == 0
    assert (out / "config.json").exists()
    capsys.readouterr()
    assert main(["grade", str(searched), "--task", task]) == 0
    assert "3 rows of 3 problems" in capsys.readouterr().out


def test_the_command_line_refuses_in_one_sentence(tmp_path, capsys):
    assert main(["search", "--task", "gym:sudokus", "--out", str(tmp_path / "x")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: task 'gym:sudokus'")
    assert not (tmp_path / "x").exists()


def test_without_reasoning_gym(tmp_path):
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError('no such thing')")
    call = "from engine.tasks import get_task; get_task('gym:chain_sum')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, text=True)
    assert "pip install 'ttc-engine[gym]'), and cannot import it (no such thing)" in done.stderr
