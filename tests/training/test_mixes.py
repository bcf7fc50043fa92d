"""Files with weights: from which updates are drawn, and which questions no file is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.cli.recipes import _rollouts, _shown
from engine.errors import UserError
from engine.training.arguments import UpdatesRecipe
from engine.training.mixes import held_out_questions, read_heaps
from engine.training.orm import ORMRecipe, train_orm
from engine.training.prm import PRMRecipe, TrunkHeadRecipe, train_prm, train_trunk_head
from engine.training.revision import RevisionRecipe, train_revision
from tests.cli.conftest import assert_refused, models, ttc
from tests.tiny import tiny_policy

__all__ = ["models", "ttc"]


def write(path: Path, numbers: range, **more: object) -> Path:
    """A right and a wrong answer to each question."""
    rows = [
        {
            "prompt": f"{i};+1\n",
            "completions": [f"{i}+1={i + right}\n", f"{i}={i}"],
            "labels": [1.0, float(right)],
            **more,
        }
        for i in numbers
        for right in (0, 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_and_weights_as_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _rollouts("a.jsonl,b.jsonl") == [Path("a.jsonl"), Path("b.jsonl")]
    assert _rollouts("a.jsonl=0.25,b.jsonl=2") == {Path("a.jsonl"): 0.25, Path("b.jsonl"): 2.0}
    Path("a=0.5").touch()
    assert _rollouts("a=0.5") == [Path("a=0.5")]
    assert _rollouts("a=0.5=3") == {Path("a=0.5"): 3.0}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("a.jsonl=0.5,b.jsonl", "either all files have a weight or none has, got 'b.jsonl' without one"),
        ("a.jsonl=much", "the weight of a file must be a number over 0, got 'a.jsonl=much'"),
        ("a.jsonl=1,a.jsonl=2", "a file of a mix is named once, got 'a.jsonl' twice"),
        ("a.jsonl=0", "the weight of a.jsonl must be a number over 0, got 0.0"),
        ("a.jsonl=nan", "the weight of a.jsonl must be a number over 0, got nan"),
        ("a.jsonl=1e308,b.jsonl=1e308", "the weights of a mix need a finite sum, got 1e+308, 1e+308"),
    ],
)
@pytest.mark.parametrize("command", ["prm", "trunk-head", "orm", "revision"])
def test_bad_weights(ttc, models, tmp_path, monkeypatch, command, names, words):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        write(Path(name), range(4))
    start = "--policy" if command == "trunk-head" else "--base"
    assert_refused(ttc("train", command, start, models.policy, "--rollouts", names, "--out", "model"), words)
    assert not Path("model").exists()


def test_a_question_is_held_out_from_all_files_and_from_the_next_training():
    read = {Path("a"): range(1000), Path("b"): range(500, 1500)}
    recipe = UpdatesRecipe(held_out=0.2)
    first, second = read_heaps(dict.fromkeys(read, 1.0), lambda paths: read[paths[0]], recipe, str)
    assert not {*first.train, *second.train} & {*first.held, *second.held}
    assert 0.15 < len(first.held) / 1000 < 0.25
    (alone,) = read_heaps([Path("b")], lambda paths: read[paths[0]], recipe, str)
    assert alone.held == second.held
    other = UpdatesRecipe(held_out=0.2, seed=1)
    assert read_heaps([Path("b")], lambda paths: read[paths[0]], other, str)[0].held != alone.held


def test_few_questions_are_on_both_sides():
    for seed in range(20):
        assert len(held_out_questions({"a", "b"}, 0.01, seed)) == len(held_out_questions({"a", "b"}, 0.99, seed)) == 1
    assert len(held_out_questions({str(i) for i in range(10)}, 0.99, 0)) >= 8


def test_a_file_of_held_out_questions_alone_is_refused():
    files = {Path("many"): range(100), Path("few"): [*held_out_questions(set(map(str, range(100))), 0.1, 0)]}
    with pytest.raises(UserError, match=r"all questions of few are held out, '.*' is: nothing is left to train on"):
        read_heaps(dict.fromkeys(files, 1.0), lambda paths: files[paths[0]], UpdatesRecipe(), str)


TRAININGS = {
    "prm": (train_prm, PRMRecipe(num_updates=12, tokens_per_step=64)),
    "trunk-head": (train_trunk_head, TrunkHeadRecipe(num_updates=12, tokens_per_step=64)),
    "orm": (train_orm, ORMRecipe(num_updates=12, tokens_per_step=64)),
    "revision": (train_revision, RevisionRecipe(num_updates=12, tokens_per_step=64)),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_figures_of_a_mix_are_by_file_and_weights_make_a_training(tmp_path, kind):
    function, recipe = TRAININGS[kind]
    base = tiny_policy(tmp_path / "base")
    a, b = write(tmp_path / "a.jsonl", range(30)), write(tmp_path / "b.jsonl", range(20, 26))
    to = base, tmp_path / "out", tmp_path / "work", recipe
    figures = function({a: 1.0, b: 3.0}, *to)
    found = figures["by_file"]
    assert list(found) == [str(a), str(b)]
    assert found[str(b)]["epochs"] > found[str(a)]["epochs"] > 0
    assert "epochs" not in figures
    assert found[str(a)]["held_out_loss"] > 0
    with pytest.raises(UserError, match=r"another training: weights was \[1.0, 3.0\], now \[1.0, 2.0\]"):
        function({a: 1.0, b: 2.0}, *to)
    with pytest.raises(UserError, match=r"another training: weights was \[1.0, 3.0\], now not set"):
        function([a, b], *to)
    heap = function([a, b], *to, overwrite=True)
    assert "by_file" not in heap
    assert heap["epochs"] > 0


def test_numbers_of_steps_are_shown_whole():
    figures = {"data": "3 files", "held_out_steps": 10921, "auc": 0.98765, "epochs": 2.0}
    assert _shown(figures) == "data 3 files, held out steps 10,921, auc 0.9877, epochs 2"


def test_figures_on_the_command_line(ttc, models, tmp_path):
    a, b = write(tmp_path / "a.jsonl", range(30)), write(tmp_path / "b.jsonl", range(30, 60))
    train = ["train", "prm", "--base", models.policy, "--out", tmp_path / "out", "--work", tmp_path / "work"]
    outcome = ttc(*train, "--rollouts", f"{a}=0.3,{b}=0.7", "--num-updates", 8, "--tokens-per-step", 128)
    assert outcome.status == 0, outcome.err
    of_a, of_b, of_all = outcome.out.splitlines()[-3:]
    assert of_a.startswith(f"{a}: held out loss ")
    assert of_b.startswith(f"{b}: held out loss ")
    assert ", epochs " in of_b
    assert of_all.startswith("prm trained, held out loss ")
