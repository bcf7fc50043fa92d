"""`ttc rollouts --pass-rate`: which questions are kept, their rows and their order."""

from __future__ import annotations

import json
from itertools import takewhile

import pytest

from engine.results import journal_path
from engine.runtime import LLM
from engine.training.pass_rates import PassBounds, Selection
from engine.training.rollouts import RolloutRecipe, generate, questions
from engine.training.stepwise import read_stepwise
from engine.training.workers import generate_in_workers
from tests.cli.conftest import assert_refused, models, ttc
from tests.tiny import tiny_policy

__all__ = ["models", "ttc"]

NUM = 30  # questions


def row(share: float, length: float = 1.0) -> dict:
    return {"pass_rate": share, "mean_tokens": length}


def test_the_first_within_bounds_are_chosen_whatever_came_first():
    rows = dict(enumerate([row(0.5, 9), row(0.0), row(0.25, 3), row(1.0), row(0.3, 3), row(0.4, 1)]))
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        selection = Selection(PassBounds.parse("0.25:0.5"), 3)
        for position in order:
            assert selection.needs(position) or position == 5, "only behind three that are kept is none needed"
            assert selection.add(position, rows[position]) == (position not in (1, 3))
        assert not selection.needs(5)
        assert selection.chosen(rows) == [2, 4, 0]  # short answers first
        assert selection.summary(rows) == "kept of 5 tried"
    few = Selection(PassBounds(0.25, 0.3), 3)
    assert sum(few.add(position, each) for position, each in rows.items()) == few.num_kept == 2
    assert few.needs(9)
    assert "kept of 6 tried, 3 wanted: 1 are solved less often than in 0.25 of the samples, 3 more" in few.summary(rows)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> tuple[LLM, dict]:
    model = {"folder": tiny_policy(tmp_path_factory.mktemp("models") / "policy"), "num_blocks": 4096, "max_batch": 8}
    return LLM.load(**model), model


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """Questions with a digit for an answer, which a policy that writes digits at random hits now and then."""
    file = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [{"question": f"{index}+{index}", "answer": f"#### {index % 10}", "id": index} for index in range(NUM)]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(file)


def recipe(source: str, **fields) -> RolloutRecipe:
    given = {"num_samples": 2, "num_rollouts": 2, "max_tokens": 40, "num_questions": NUM}
    return RolloutRecipe(task="gsm8k", problems=source, seed=3, **given | fields)


@pytest.mark.parametrize(
    "fields", [{}, {"num_rollouts": 0}, {"num_rollouts": 0, "num_attempts": 2}, {"num_samples": 7}]
)
def test_a_question_has_the_rows_that_it_has_without_a_choice(loaded, source, fields):
    llm, _ = loaded
    plain = dict(generate(llm, recipe(source, **fields)))
    bounded = recipe(source, pass_rate="0.01:0.99", pass_samples=5, **fields)
    found = dict(generate(llm, bounded))
    kept = [index for index, labelled in found.items() if labelled.pass_rate in bounded.pass_bounds]
    assert 0 < len(kept) < NUM
    for index, labelled in found.items():
        assert labelled.rows == (plain[index].rows if index in kept else [])
        assert labelled.num_rollouts == (plain[index].num_rollouts if index in kept else 0)
    llm.runner.tree.check_integrity()


def test_the_share_is_that_of_the_samples_that_are_labelled(loaded, source):
    llm, _ = loaded
    found = dict(generate(llm, recipe(source, num_samples=5, num_rollouts=0, pass_rate="0:1", pass_samples=5)))
    assert len({labelled.pass_rate for labelled in found.values()}) > 1
    for labelled in found.values():
        assert labelled.pass_rate == sum(each["labels"][-1] for each in labelled.rows) / 5  # cut ones count as wrong
        if len(labelled.rows) == 5:
            lengths = [sum(map(len, each["token_ids"])) for each in labelled.rows]
            assert labelled.mean_tokens == sum(lengths) / 5


def test_workers_stop_once_enough_are_kept(loaded, source):
    llm, model = loaded
    chosen = recipe(source, num_rollouts=0, num_questions=2, pass_rate="0:1", pass_samples=2)
    problems, selection = questions(chosen), Selection(chosen.pass_bounds, 2)
    assert len(problems) == NUM  # all may be tried
    got = {}
    for index, labelled in generate_in_workers(2, model, chosen, range(NUM), problems, selection.needs):
        got[index] = labelled
        selection.add(index, vars(labelled))
    assert got.items() <= dict(generate(llm, chosen)).items()
    assert {0, 1} <= got.keys()
    alone = Selection(chosen.pass_bounds, 2)
    for index, labelled in generate(llm, chosen, takewhile(alone.needs, [0, 4, 7])):
        assert labelled.pass_rate in chosen.pass_bounds
        alone.add(index, vars(labelled))
    assert alone.num_kept == 2


def test_on_the_command_line(ttc, models, source, tmp_path):
    file, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    model = ["--policy", models.policy, "--num-blocks", 4096, "--max-tokens", 40, "--seed", 3, "--task", "gsm8k"]
    counts = ["--num-questions", 3, "--num-samples", 2, "--num-rollouts", 2, "--pass-samples", 5]
    arguments = ["rollouts", *model, *counts, "--problems", source]
    bounds = ["--pass-rate", "0.01:0.99"]
    outcome = ttc(*arguments, *bounds, "--out", file)
    assert outcome.status == 0, outcome.err
    assert outcome.last_line.startswith("3 questions, kept of ")
    rows = read_stepwise(file)
    assert 1 < len({each["prompt"] for each in rows}) <= 3
    assert ttc(*arguments, *bounds, "--out", other, "--workers", 2, "--max-batch", 3).status == 0
    assert other.read_bytes() == file.read_bytes()
    lines = journal_path(file).read_bytes().splitlines(keepends=True)
    torn = [lines[0], *lines[2:4]]  # the first question is missing, which a killed run may leave so
    journal_path(file).write_bytes(b"".join(torn) + lines[1][:20])
    file.unlink()
    outcome = ttc(*arguments, *bounds, "--out", file)
    assert f"resumed 2: {file}" in outcome.last_line
    assert file.read_bytes() == other.read_bytes()
    short = ttc(*arguments, *bounds, "--num-questions", NUM, "--out", tmp_path / "x")
    assert f"kept of {NUM} tried, {NUM} wanted" in short.last_line
    short = ttc(*arguments, *bounds, "--max-tries", 4, "--out", tmp_path / "y")
    assert " of 4 tried" in short.last_line
    more = ttc(*arguments, *bounds, "--max-tries", NUM, "--out", tmp_path / "y")
    assert "resumed 4" in more.last_line, more.err
    assert (tmp_path / "y").read_bytes() == file.read_bytes()
    none = [*arguments, "--pass-rate", "0.9:0.91", "--out", tmp_path / "z"]
    assert_refused(ttc(*none), f"no question is kept of {NUM} tried, 3 wanted", "--max-tries")
    for wrong in ("0.5", "a:b", "0.6:0.1", "0:2"):
        assert_refused(ttc(*arguments, "--pass-rate", wrong, "--out", tmp_path / "w"), "pass_rate", repr(wrong))
    assert_refused(ttc(*arguments, "--out", tmp_path / "w"), "--pass-samples has no effect without", "got 5")
    low = [*arguments, *bounds, "--max-tries", 2, "--out", tmp_path / "w"]
    assert_refused(ttc(*low), "max_tries must be at least 3", "got 2")


def test_questions_without_an_end_are_tried_so_often_at_most():
    assert len(questions(RolloutRecipe(num_questions=2, pass_rate="0.1:0.2"))) == 40
    assert len(questions(RolloutRecipe(num_questions=2, pass_rate="0.1:0.2", max_tries=7))) == 7
    settings = RolloutRecipe(num_questions=2, pass_rate="0.1:0.2", max_tries=7).settings
    assert "max_tries" not in settings, "a run that found too few goes on with more"
    assert settings["pass_samples"] == 8
    assert "pass_samples" not in RolloutRecipe().settings
