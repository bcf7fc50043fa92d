"""`ttc train` and `ttc rollouts`: recipes as options, and rollouts that can be killed."""

from __future__ import annotations

import dataclasses

import pytest
import typer

from engine.cli.options import command
from engine.cli.recipes import KNOBS
from engine.commands import run_app
from engine.results import journal_path
from engine.training.orm import ORMRecipe
from engine.training.policy import PolicyRecipe
from engine.training.prm import PRMRecipe
from engine.training.rollouts import RolloutRecipe
from engine.training.stepwise import read_stepwise
from tests.cli.conftest import assert_refused


def parsed(recipe_class: type, arguments: list[str]) -> object:
    """The recipe that a command with these arguments would run."""
    recipes: list[object] = []

    def run(recipe: object) -> None:
        """A command that trains nothing."""
        recipes.append(recipe)

    run.__annotations__["recipe"] = recipe_class
    app = typer.Typer(add_completion=False)
    app.command()(command(pairs=KNOBS)(run))
    assert run_app(app, arguments, "train") == 0
    return recipes[0]


@pytest.mark.parametrize("recipe_class", [PolicyRecipe, PRMRecipe, ORMRecipe, RolloutRecipe])
def test_every_field_of_a_recipe_is_an_option(recipe_class):
    default = recipe_class()
    assert parsed(recipe_class, []) == default
    for field in dataclasses.fields(recipe_class):
        value = getattr(default, field.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        other = value / 2 if isinstance(value, float) else value + 1
        flag = "--" + field.name.replace("_", "-")
        needed = {"num_rollouts": 0} if field.name == "num_attempts" else {}
        flags = [flag, str(other), *(["--num-rollouts", "0"] if needed else [])]
        assert parsed(recipe_class, flags) == dataclasses.replace(default, **{field.name: other}, **needed)


def test_labels_are_pooled_or_per_step():
    assert parsed(PRMRecipe, ["--pooled"]).pooled
    assert not parsed(PRMRecipe, ["--per-step"]).pooled


def test_the_problems_of_a_policy_have_knobs():
    recipe = parsed(PolicyRecipe, ["--data", "max_walks=4", "--data", "lengths=1,2"])
    default = PolicyRecipe().data
    assert recipe.data == dataclasses.replace(default, max_walks=4, lengths=(1.0, 2.0))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "policy", "--num-layers", "many"], ["--num-layers", "'many'"]),
        (["train", "policy", "--data", "depth"], ["is written name=value", "'depth'"]),
        (["train", "policy", "--data", "colour=3"], ["no option 'colour'"]),
        (["train", "policy", "--device", "abacus"], ["device", "'abacus'"]),
        (["train", "policy", "--base", "nowhere"], ["no checkpoint folder", "'nowhere'"]),
        (["train", "prm", "--base", "nowhere"], ["no checkpoint folder", "'nowhere'"]),
        (["train", "prm", "--held-out", "2"], ["held_out", "got 2.0"]),
        (["train", "trunk-head", "--num-extra-layers", "1"], ["adds no layers", "num_extra_layers 1"]),
        (["train", "poet"], ["'poet'"]),
        (["rollouts", "--policy", "nowhere"], ["no checkpoint folder", "'nowhere'"]),
        (["rollouts", "--num-rollouts", "-1"], ["num_rollouts", "got -1"]),
        (["rollouts", "--workers", "0"], ["workers must be at least 1", "got 0 with device 'cpu'"]),
        (["rollouts", "--workers", "2", "--device", "cuda"], ["1 but on a CPU", "got 2 with device 'cuda'"]),
    ],
    ids=lambda part: " ".join(part),
)
def test_bad_input(ttc, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)  # and --out: should one be accepted, it must not write over the shipped models
    assert_refused(ttc(*arguments, "--out", tmp_path / "model"), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["prm", "trunk-head"])
def test_rollouts_that_are_missing_or_broken(ttc, models, tmp_path, command):
    start = {"prm": "--base", "trunk-head": "--policy"}[command]
    arguments = ["train", command, start, models.policy, "--out", tmp_path / "model", "--work", tmp_path / "work"]
    file = tmp_path / "rollouts.jsonl"
    assert_refused(ttc(*arguments, "--rollouts", file), str(file))
    file.write_text('{"prompt": "b4?"}\n')
    assert_refused(ttc(*arguments, "--rollouts", file), f"{file}, line 1", "completions")
    assert not (tmp_path / "model").exists()


def test_rollouts_go_on_where_they_stopped(ttc, models, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    counts = ["--num-questions", 6, "--num-samples", 2, "--num-rollouts", 2]
    arguments = ["rollouts", "--policy", models.policy, "--num-blocks", 16384, "--out", file, *counts]
    assert ttc(*arguments).status == 0
    written = file.read_bytes()
    rows = read_stepwise(file)
    assert all(len(row["labels"]) == len(row["token_ids"]) for row in rows)
    assert len({row["prompt"] for row in rows}) > 3

    lines = journal_path(file).read_bytes().splitlines(keepends=True)
    journal_path(file).write_bytes(b"".join(lines[:4]) + lines[4][:30])
    file.unlink()
    outcome = ttc(*arguments, "--max-batch", 3, "--workers", 2)
    assert outcome.status == 0, outcome.err
    assert outcome.last_line.endswith(f"resumed 3: {file}")
    assert file.read_bytes() == written
    num_sampled, num_cut = 12, 12 - len(rows)
    assert (f"{num_cut} of 12 answers were cut off" in outcome.last_line) == (2 * num_cut > num_sampled)
    short = ttc(*arguments, "--out", tmp_path / "short.jsonl", "--max-tokens", 1)
    assert ", 12 of 12 answers were cut off at --max-tokens (raise it, " in short.last_line
    assert_refused(ttc(*arguments, "--temperature", 0.5), "temperature was 1.0, now 0.5")
    assert ttc(*arguments, "--temperature", 0.5, "--overwrite").status == 0
    assert file.read_bytes() != written
