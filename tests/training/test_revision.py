"""Revision models: which attempts stand before a right answer, where the loss is, which checkpoint is kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine.tasks.tokenizer import build_tokenizer
from engine.training.policy import IGNORED
from engine.training.revision import (
    Attempt,
    RevisionRecipe,
    Trajectory,
    build_trajectories,
    chosen_step,
    encode,
    held_out_losses,
    read_attempts,
    train_revision,
)
from tests.cli.conftest import assert_refused, models, ttc
from tests.tiny import tiny_policy

__all__ = ["models", "ttc"]


def attempt(text: str, is_right: bool = False) -> Attempt:
    return Attempt(text, tuple(build_tokenizer()(text)["input_ids"]), is_right)


WRONG = [attempt(text) for text in ("1+1=3", "9-9=0\n0*5=7", "#", "1+1=25")]
RIGHT = attempt("1+1=2", True)


def test_the_closest_wrong_attempt_comes_last():
    recipe = RevisionRecipe(attempts="wrong", max_attempts=4, max_right=50)
    trajectories, counts = build_trajectories([("1;+1\n", [*WRONG, *[RIGHT] * 50])], recipe)
    assert len(trajectories) == 50
    lengths = Counter(len(each.attempts) for each in trajectories)
    assert set(lengths) == {0, 1, 2, 3, 4}
    assert counts.by_attempts == lengths
    for each in trajectories:
        assert each.right == RIGHT
        assert not each.attempts or each.attempts[-1].text == "1+1=3"
        assert len({wrong.text for wrong in each.attempts}) == len(each.attempts)
    assert len({each.attempts for each in trajectories if len(each.attempts) == 3}) > 1  # the others are random


def test_the_number_of_wrong_attempts_is_uniform():
    recipe = RevisionRecipe(attempts="wrong", max_attempts=3, max_right=1)
    questions = [(f"{i};+1\n", [*WRONG, RIGHT]) for i in range(800)]
    trajectories, counts = build_trajectories(questions, recipe)
    assert sorted(counts.by_attempts) == [0, 1, 2, 3]
    assert all(150 < number < 250 for number in counts.by_attempts.values())  # 200 expected, sd 12
    again, _ = build_trajectories(questions, recipe)
    other, _ = build_trajectories(questions, RevisionRecipe(attempts="wrong", max_attempts=3, max_right=1, seed=1))
    assert trajectories == again != other


def test_sampled_attempts_are_any_but_the_answer_itself():
    attempts = [*WRONG, RIGHT, attempt("2", True), attempt("2", True)]
    recipe = RevisionRecipe(attempts="sampled", max_right=1)
    trajectories, counts = build_trajectories([(f"{i};+1\n", attempts) for i in range(400)], recipe)
    assert sorted(counts.by_attempts) == [0, 1, 2, 3, 4]
    seen = [each for trajectory in trajectories for each in trajectory.attempts]
    share = sum(each.is_right for each in seen) / len(seen)
    assert share == pytest.approx(2 / 6, abs=0.06)  # what is left of three of seven once the answer is taken
    for each in trajectories:
        assert each.right.is_right
        assert not any(one is each.right for one in each.attempts)
    assert any(each.right.text in [one.text for one in each.attempts] for each in trajectories)  # said before
    assert len({each.attempts[-1].text for each in trajectories if each.attempts}) == 6


def test_the_number_of_attempts_follows_given_odds():
    recipe = RevisionRecipe(attempt_weights="0.05,0.55,0,0.4", max_right=1)
    _, counts = build_trajectories([(f"{i};+1\n", [*WRONG, RIGHT]) for i in range(1000)], recipe)
    assert sorted(counts.by_attempts) == [0, 1, 3]
    assert counts.by_attempts[1] == pytest.approx(550, abs=60)  # sd 16
    assert counts.by_attempts[3] == pytest.approx(400, abs=60)
    assert RevisionRecipe(max_attempts=2).odds == (1.0, 1.0, 1.0)


def test_each_epoch_draws_other_attempts():
    recipe = RevisionRecipe(max_right=1)
    questions = [(f"{i};+1\n", [*WRONG, RIGHT]) for i in range(20)]
    epochs = [build_trajectories(questions, recipe, epoch)[0] for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert [each.right for each in epochs[0]] == [each.right for each in epochs[1]]


def test_the_oldest_attempts_are_left_out_of_a_short_context():
    tokenizer = build_tokenizer()
    trajectory = Trajectory("1;+1\n", (WRONG[1], WRONG[2], WRONG[0]), RIGHT)
    whole, _ = encode(trajectory, tokenizer)
    assert encode(trajectory, tokenizer, len(whole))[0] == whole
    shorter, labels = encode(trajectory, tokenizer, len(whole) - 1)
    assert tokenizer.decode(shorter) == "1;+1\n#1;+1\n1+1=31;+1\n1+1=2"
    assert labels[-5:] == list(RIGHT.token_ids)
    assert tokenizer.decode(encode(trajectory, tokenizer, 1)[0]) == "1;+1\n1+1=2"


def test_what_becomes_of_questions():
    questions = [
        ("a", WRONG),
        ("b", [RIGHT, RIGHT]),
        ("c", [attempt("1+1=3"), attempt("1+1=3"), attempt("1+1=3"), *[RIGHT] * 30]),
    ]
    trajectories, counts = build_trajectories(questions, RevisionRecipe(attempts="wrong", max_right=20))
    assert (counts.questions, counts.never_right, counts.never_wrong) == (3, 1, 1)
    assert Counter(each.prompt for each in trajectories) == {"b": 2, "c": 20}
    # An equal text counts once, as a wrong attempt: whatever k is, there is one of them at most.
    assert {len(each.attempts) for each in trajectories if each.prompt == "c"} == {0, 1}
    assert str(counts).startswith(
        "3 questions (1 never right, 1 never wrong), trajectories by attempts before the right one: "
    )
    assert len(build_trajectories(questions, RevisionRecipe(max_right=3))[0]) == 5


def test_the_loss_is_on_the_right_answer_alone():
    tokenizer = build_tokenizer()
    ids, labels = encode(Trajectory("1;+1\n", (WRONG[2], WRONG[0]), RIGHT), tokenizer)
    assert tokenizer.decode(ids) == "1;+1\n#1;+1\n1+1=31;+1\n1+1=2"
    assert labels[-5:] == list(RIGHT.token_ids) == ids[-5:]
    assert set(labels[:-5]) == {IGNORED}
    assert len(labels) == len(ids)


def test_attempts_are_read_by_question_and_closed(tmp_path):
    tokenizer = build_tokenizer()
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "b", "completions": ["1+1=2\n", "2=2"], "labels": [0.0, 0.5]},
        {"prompt": "a", "completions": ["1"], "labels": [0.4], "token_ids": [[5, 1]]},
        {"prompt": "b", "completions": ["7"], "labels": [0.0]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = read_attempts([file], tokenizer)
    assert [(prompt, [(each.text, each.is_right) for each in group]) for prompt, group in questions] == [
        ("a", [("1", False)]),
        ("b", [("1+1=2\n2=2", True), ("7", False)]),
    ]
    assert questions[0][1][0].token_ids == (5, 1)
    assert questions[1][1][0].token_ids == (*tokenizer("1+1=2\n2=2")["input_ids"], tokenizer.eos_token_id)


def test_the_checkpoint_after_the_lowest_loss_is_kept():
    assert chosen_step({4: 1.0, 8: 0.5, 12: 0.6, 16: 0.7}) == 12
    assert chosen_step({4: 1.0, 8: 0.5, 12: 0.4}) == 12
    assert chosen_step({4: 0.5, 8: 0.5, 12: 0.5}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1, got 0"),
        ({"max_right": 0}, "max_right must be at least 1, got 0"),
        ({"tokens_per_step": 0}, "tokens_per_step must be at least 1, got 0"),
        ({"attempts": "right"}, "attempts must be 'wrong' or 'sampled', got 'right'"),
        ({"held_out": 1.0}, "held_out must be within .0, 1., got 1.0"),
        ({"num_updates": 0}, "num_updates must be at least 1, got 0"),
        ({"attempt_weights": "0.1,some"}, "attempt_weights must be numbers like .*, got '0.1,some'"),
        ({"attempt_weights": "1e308,1e308"}, "attempt_weights must be numbers like .*, got '1e308,1e308'"),
        ({"attempt_weights": "0,0"}, "attempt_weights must be numbers like .*, got '0,0'"),
        ({"attempt_weights": "1,-1,2"}, "attempt_weights must be numbers like .*, got '1,-1,2'"),
        ({"attempt_weights": "1,1,1", "max_attempts": 1}, "max_attempts is 1, got attempt_weights '1,1,1' for more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RevisionRecipe(**options)


def rollouts(folder: Path, num_questions: int = 40) -> Path:
    """A wrong answer and two right ones to each question."""
    rows = []
    for i in range(num_questions):
        for text, label in ((f"{i}+1={i}", 0.0), (f"{i}+1={i + 1}", 1.0), (f"{i + 1}={i + 1}", 1.0)):
            rows.append({"prompt": f"{i};+1\n", "completions": [text], "labels": [label]})
    file = folder / "attempts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_stopped_training_of_a_reviser_ends_as_an_undisturbed_one(tmp_path):
    file, base = rollouts(tmp_path), tiny_policy(tmp_path / "base")
    recipe = RevisionRecipe(tokens_per_step=128, num_updates=32, learning_rate=5e-3, held_out=0.2)
    work = tmp_path / "work"
    figures = train_revision([file], base, tmp_path / "whole", work, recipe)
    losses = held_out_losses(work)
    assert list(losses) == [4, 8, 12, 16, 20, 24, 28, 32]
    assert figures["step"] == chosen_step(losses)
    assert figures["held_out_loss"] == pytest.approx(losses[figures["step"]])
    assert figures["held_out_loss"] < losses[min(losses)]
    kept = weights(work / f"checkpoint-{figures['step']}")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(tmp_path / "whole").items())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").config.use_cache

    for checkpoint in work.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > sorted(losses)[2]:
            for entry in checkpoint.iterdir():
                entry.unlink()
            checkpoint.rmdir()
    again = train_revision([file], base, tmp_path / "resumed", work, recipe)
    assert again == pytest.approx(figures)
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "resumed")[name], tensor)


def test_reviser_on_the_command_line(ttc, tmp_path):
    file, base = rollouts(tmp_path, 12), tiny_policy(tmp_path / "base", context=64)
    train = ["train", "revision", "--base", base, "--num-updates", 2, "--held-out", 0.25]
    train += ["--out", tmp_path / "out", "--work", tmp_path / "work"]
    outcome = ttc(*train, "--rollouts", file, "--max-right", 1)
    assert outcome.status == 0, outcome.err
    assert "12 questions (0 never right, 0 never wrong)" in outcome.last_line
    assert outcome.last_line.endswith(str(tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert_refused(ttc(*train, "--rollouts", tmp_path / "none"), "no rollouts at")
    assert_refused(ttc(*train, "--rollouts", file, "--max-attempts", 0), "max_attempts", "got 0")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "1;+1\\n", "completions": ["3"], "labels": [0]}\n')
    assert_refused(ttc(*train, "--rollouts", wrong), "holds nothing to train on", "1 never right")
    long = tmp_path / "long.jsonl"
    rows = [{"prompt": f"{i};+1\n", "completions": ["1" * 70], "labels": [1]} for i in range(4)]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert_refused(ttc(*train, "--rollouts", long), "tokens, over the context of 64")
