"""What verifiers are trained on: labels, answers, histories, ends of text; and an outcome verifier in a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from engine.tasks.tokenizer import build_tokenizer
from engine.training import arguments
from engine.training.labels import harden_labels, pool_labels
from engine.training.orm import ORMRecipe, choose_answers, encode_answer, train_orm
from engine.training.prm import PRMRecipe, encode_steps, read_steps_to_learn, train_prm
from engine.training.verifier import UNLABELLED, RowEncoder, VerifierRecipe
from engine.verifiers.figures import auc, auc_within
from tests.cli.conftest import assert_refused, models, ttc
from tests.tiny import tiny_policy, tiny_prm

__all__ = ["models", "ttc"]


def row(prompt: str, *steps: str, labels: list[float], **more: object) -> dict:
    return {"prompt": prompt, "completions": list(steps), "labels": labels, **more}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def ids(text: str) -> list[int]:
    return build_tokenizer()(text)["input_ids"]


EOS = build_tokenizer().eos_token_id


@pytest.fixture
def encoder(tmp_path) -> RowEncoder:
    return RowEncoder.of(tiny_policy(tmp_path / "policy"), VerifierRecipe())


def test_an_answer_of_texts_is_closed_by_the_end_of_text(encoder):
    texts = row("1;+1;+2\n", "1+1=2\n", "2+2=4", labels=[1.0, 0.5])
    step_ids, step_labels = encode_steps(texts, encoder)
    assert step_ids == [*ids("1;+1;+2\n1+1=2\n2+2=4"), EOS]
    assert [(i, label) for i, label in enumerate(step_labels) if label != UNLABELLED] == [(13, 1.0), (19, 0.5)]
    assert step_ids[13] == ids("\n")[0]
    _, before = encode_steps(texts, encoder, shift=1)
    assert [i for i, label in enumerate(before) if label != UNLABELLED] == [12, 18]
    answer_ids, answer_labels = encode_answer(texts, encoder)
    assert answer_ids == step_ids
    assert answer_labels == [UNLABELLED] * 19 + [0.5]


def test_what_goes_on_or_has_token_ids_is_not_closed(encoder):
    going_on = row("1;+1;+2\n", "1+1=2\n", labels=[1.0])
    assert encode_steps(going_on, encoder)[0] == ids("1;+1;+2\n1+1=2\n")
    other = replace(encoder, separator="2")
    assert encode_steps(going_on, other)[0][-1] == EOS
    written = row("1;+1\n", "1+1=2", labels=[1.0], token_ids=[ids("1+1=2")])
    assert encode_steps(written, encoder)[0] == ids("1;+1\n1+1=2")


def test_the_separator_is_that_of_the_recipe(tmp_path):
    policy = tiny_policy(tmp_path / "policy")
    assert RowEncoder.of(policy, VerifierRecipe(step_separator="\\n\\n")).separator == "\n\n"
    assert RowEncoder.of(policy, VerifierRecipe()).end == (EOS,)


def test_earlier_attempts_stand_before_the_answer_of_an_orm_alone(encoder):
    first, second = [*ids("1+1=3"), EOS], [*ids("1+1=4"), EOS]
    chained = row("1;+1\n", "1+1=2", labels=[1.0], token_ids=[[*ids("1+1=2"), EOS]], history=[first, second])
    prompt = ids("1;+1\n")
    expected = [*prompt, *first, *prompt, *second, *prompt, *ids("1+1=2"), EOS]
    assert encode_answer(chained, encoder)[0] == expected
    assert encode_answer(chained, encoder)[1].count(UNLABELLED) == len(expected) - 1
    assert encode_steps(chained, encoder)[0] == [*prompt, *ids("1+1=2"), EOS]


def test_hard_labels_count_rollouts_from_later_steps(tmp_path):
    rows = [
        row("a", "x\n", "y\n", "z", labels=[0.0, 0.25, 0.0]),
        row("a", "x\n", "w", labels=[0.0, 0.0]),
    ]
    assert [each["labels"] for each in harden_labels(rows, 0.0)] == [[1.0, 1.0, 0.0], [0.0, 0.0]]
    assert [each["labels"] for each in harden_labels(rows, 0.5)] == [[0.0, 0.0, 0.0], [0.0, 0.0]]
    file = write(tmp_path / "rows.jsonl", rows)
    recipe = PRMRecipe(labels="hard", pooled=True)
    assert [each["labels"] for each in read_steps_to_learn([file], recipe)] == [[1.0, 1.0, 0.0], [1.0, 0.0]]


def test_pooled_and_hard_labels(tmp_path):
    rows = [
        row("a", "x\n", "y", labels=[0.5, 1.0]),
        row("a", "x\n", "z", labels=[0.25, 0.0]),
        row("b", "x\n", "y", labels=[0.0, 0.0]),
    ]
    assert [each["labels"] for each in pool_labels(rows)] == [[0.375, 1.0], [0.375, 0.0], [0.0, 0.0]]
    assert [each["labels"] for each in harden_labels(rows, 0.0)] == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert [each["labels"] for each in harden_labels(rows, 0.25)] == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    file = write(tmp_path / "rows.jsonl", rows)

    def labels(**options) -> list[list[float]]:
        return [each["labels"] for each in read_steps_to_learn([file], PRMRecipe(**options))]

    assert labels() == [[0.5, 1.0], [0.25, 0.0], [0.0, 0.0]]
    assert labels(pooled=True) == [[0.375, 1.0], [0.375, 0.0], [0.0, 0.0]]
    hard = labels(labels="hard", hard_threshold=0.3, pooled=True)  # pooled first
    assert hard == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert labels(labels="hard", hard_threshold=0.3) == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["prm", "--labels", "loud"], ["labels must be one of soft, hard", "'loud'"]),
        (["prm", "--labels", "hard", "--hard-threshold", "1"], ["hard_threshold must be within", "got 1.0"]),
        (["prm", "--hard-threshold", "0.5"], ["hard_threshold has no effect with soft labels", "got 0.5"]),
        (["orm", "--max-answers", "0"], ["max_answers must be at least 1", "got 0"]),
        (["orm", "--max-answers", "1", "--balance"], ["max_answers must be at least 2", "got 1"]),
        (["orm", "--base", "nowhere"], ["no checkpoint folder", "'nowhere'"]),
    ],
    ids=lambda part: " ".join(part),
)
def test_bad_options(ttc, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    assert_refused(ttc("train", *arguments, "--out", tmp_path / "model"), *parts)


ANSWERS = [
    *[row("a", f"w{n}", labels=[0.0]) for n in range(6)],
    *[row("a", "r0", labels=[1.0]) for _ in range(4)],
    row("a", "r1", labels=[1.0]),
    *[row("a", f"w{n}", labels=[0.0], history=[[n]]) for n in range(3)],
    *[row("b", f"w{n}", labels=[0.0]) for n in range(4)],
]


def counts(recipe: ORMRecipe) -> list[tuple[int, int, int]]:
    """Right and wrong answers chosen of a, of a with a history, of b."""
    chosen = choose_answers(ANSWERS, recipe)
    groups = [("a", False), ("a", True), ("b", False)]
    picked = [[each for each in chosen if (each["prompt"], "history" in each) == group] for group in groups]
    return [(sum(r["labels"][0] == 1 for r in group), sum(r["labels"][0] == 0 for r in group)) for group in picked]


def test_answers_are_chosen_by_the_seed():
    everything = counts(ORMRecipe(max_answers=100))
    assert everything == [(5, 6), (0, 3), (0, 4)]
    few = counts(ORMRecipe(max_answers=3))
    assert [sum(each) for each in few] == [3, 3, 3]  # answers with a history are counted apart
    chosen = [choose_answers(ANSWERS, ORMRecipe(max_answers=3, seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert choose_answers(ANSWERS[::-1], ORMRecipe(max_answers=100, distinct=True)) != []
    assert counts(ORMRecipe(max_answers=100, distinct=True)) == [(2, 6), (0, 3), (0, 4)]
    assert counts(ORMRecipe(max_answers=100, balance=True)) == [(5, 5), (0, 1), (0, 1)]
    assert counts(ORMRecipe(max_answers=6, balance=True)) == [(3, 3), (0, 1), (0, 1)]
    assert counts(ORMRecipe(max_answers=100, balance=True, distinct=True)) == [(2, 2), (0, 1), (0, 1)]


def told_by_the_last_digit(num_questions: int = 150) -> list[dict]:
    """Four answers to each question, right where the stated digit is 5 or more; the question says nothing."""
    rows = []
    for i in range(num_questions):
        for digit in ((i * 3 + k) % 10 for k in (0, 2, 5, 7)):
            rows.append(row(f"{i};+1\n", f"{i}+1={digit}", labels=[float(digit >= 5)]))
    return rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_an_outcome_verifier_learns_and_resumes(tmp_path, monkeypatch):
    rollouts = write(tmp_path / "rows.jsonl", told_by_the_last_digit())
    policy = tiny_policy(tmp_path / "policy")
    recipe = ORMRecipe(tokens_per_step=256, num_updates=140, learning_rate=3e-3, dropout=0.0)

    def often(*args, **options):
        made = arguments.training_arguments(*args, **options)
        made.save_steps, made.save_total_limit, made.warmup_steps = 20, None, 5
        return made

    monkeypatch.setattr("engine.training.verifier.training_arguments", often)
    figures = train_orm([rollouts], policy, tmp_path / "orm", tmp_path / "work", recipe)
    assert (figures["answers"], figures["with_a_history"], figures["held_out_answers"]) == (600, 0, 72)
    assert figures["held_out_loss"] < 0.6  # ln 2 without having learned
    assert figures["auc_within_questions"] > 0.8
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "orm").config.id2label == {0: "bad", 1: "good"}

    saved = sorted((tmp_path / "work").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    for folder in saved[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    train_orm([rollouts], policy, tmp_path / "resumed", tmp_path / "work", recipe)
    for name, tensor in weights(tmp_path / "orm").items():
        torch.testing.assert_close(weights(tmp_path / "resumed")[name], tensor)


def test_an_orm_starts_from_a_classifier_and_reads_several_files(ttc, tmp_path):
    rows = told_by_the_last_digit(20)
    plain = write(tmp_path / "plain.jsonl", rows)
    chains = write(tmp_path / "chains.jsonl", [{**each, "history": [[5, 6, EOS]]} for each in rows])
    base = tiny_prm(tmp_path / "prm", num_labels=2)
    model = AutoModelForTokenClassification.from_pretrained(base)
    model.config.id2label = {0: "bad", 1: "good"}
    model.save_pretrained(base)
    train = ["train", "orm", "--base", base, "--rollouts", f"{plain},{chains}", "--num-updates", "2"]
    outcome = ttc(*train, "--out", tmp_path / "orm", "--work", tmp_path / "work", "--learning-rate", "1e-9")
    assert outcome.status == 0, outcome.err
    assert "answers 160, with a history 80" in outcome.last_line
    torch.testing.assert_close(weights(tmp_path / "orm")["score.weight"], weights(base)["score.weight"])


def test_what_an_orm_cannot_be_trained_on(tmp_path):
    policy = tiny_policy(tmp_path / "policy", context=64)
    to = (tmp_path / "out", tmp_path / "work")
    one = write(tmp_path / "one.jsonl", told_by_the_last_digit(1))
    with pytest.raises(ValueError, match=r"all questions of .*one.jsonl are held out, '0;\+1.n' is"):
        train_orm([one], policy, *to, ORMRecipe())
    long = [{**each, "history": [[5] * 60]} for each in told_by_the_last_digit(4)]
    with pytest.raises(ValueError, match=r"has 7\d tokens, the context of the model holds 64"):
        train_orm([write(tmp_path / "long.jsonl", long)], policy, *to, ORMRecipe())
    config = json.loads((policy / "config.json").read_text()) | {"eos_token_id": None}
    (policy / "config.json").write_text(json.dumps(config))
    (policy / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="names none"):
        train_orm([one], policy, *to, ORMRecipe())


def test_a_prm_is_trained_on_the_labels_that_its_options_make(tmp_path):
    rows = [row(f"{i};+1\n", f"{i}+1=2\n", "2+1=3", labels=[0.25, 0.5]) for i in range(10)]
    rollouts = [write(tmp_path / "rows.jsonl", rows)]
    policy = tiny_policy(tmp_path / "policy")
    soft = train_prm(rollouts, policy, tmp_path / "a", tmp_path / "wa", PRMRecipe(num_updates=2))
    hard = train_prm(rollouts, policy, tmp_path / "b", tmp_path / "wb", PRMRecipe(num_updates=2, labels="hard"))
    assert (soft["mean_label"], hard["mean_label"]) == (0.375, 1.0)


def test_auc_counts_ties_half_and_questions_alike():
    assert auc([0.9, 0.1, 0.5, 0.5], [True, False, True, False]) == 3.5 / 4
    assert np.isnan(auc([0.9, 0.1], [True, True]))
    # Between the questions everything is right, within them one is right, one is a tie, and one has no wrong answer.
    scores, groups = [0.9, 0.8, 0.3, 0.3, 0.99], ["a", "a", "b", "b", "c"]
    assert auc_within(scores, [True, False, True, False, True], groups) == 0.75
    assert np.isnan(auc_within([0.5], [True], ["a"]))
