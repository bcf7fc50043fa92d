"""What a training goes on from, what it refuses to go on from, and where it writes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import engine
from engine.cli import recipes
from engine.cli.calibrate import Output as CalibrateOutput
from engine.cli.rollouts import Output as RolloutsOutput
from engine.tasks.tokenizer import build_tokenizer
from engine.tasks.walks import WalksConfig
from engine.training import arguments
from engine.training.checkpoints import Checkpoints, checkpoint_folders, is_whole, save_model
from engine.training.orm import ORMRecipe, train_orm
from engine.training.policy import PolicyRecipe, train_policy
from engine.training.prm import PRMRecipe, TrunkHeadRecipe, train_prm, train_trunk_head
from engine.training.revision import RevisionRecipe, train_revision
from tests.cli.conftest import models, ttc
from tests.tiny import tiny_policy

__all__ = ["models", "ttc"]

SHORT = WalksConfig(min_walks=1, max_walks=2, lengths=(1.0, 1.0))


def recipe(**changes) -> PolicyRecipe:
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "data": SHORT}
    return PolicyRecipe(**shape, **{"tokens_per_step": 64, "num_updates": 6} | changes)


def write_rollouts(file: Path, right: float = 1.0) -> Path:
    rows = [
        {"prompt": f"{i};+1\n", "completions": [f"{i}+1={i + 1}" + "1" * wrong], "labels": [(1 - wrong) * right]}
        for i in range(8)
        for wrong in (0, 1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


TRAININGS = {
    "policy": (train_policy, PolicyRecipe, recipe()),
    "prm": (train_prm, PRMRecipe, PRMRecipe(num_updates=2)),
    "orm": (train_orm, ORMRecipe, ORMRecipe(num_updates=2)),
    "trunk-head": (train_trunk_head, TrunkHeadRecipe, TrunkHeadRecipe(num_updates=2)),
    "revision": (train_revision, RevisionRecipe, RevisionRecipe(num_updates=2, tokens_per_step=64)),
}


def train(kind: str, made: object, folder: Path, *, base: str = "base", rollouts: str = "rollouts", **options) -> None:
    """Any of the trainings, from and to the parts of `folder`."""
    given = {"base": folder / base, "policy": folder / base, "rollouts": [folder / f"{rollouts}.jsonl"]}
    function, *_ = TRAININGS[kind]
    wanted = {name: value for name, value in given.items() if name in inspect.signature(function).parameters}
    function(recipe=made, out=folder / "out", work=folder / "work", **wanted, **options)


def leave_a_checkpoint(work: Path) -> Path:
    """What a training that was killed leaves: here empty, since nothing may get as far as reading it."""
    (work / "checkpoint-2").mkdir()
    (work / "checkpoint-2" / "whole.json").write_text("{}")
    return work / "checkpoint-2"


@pytest.mark.parametrize("kind", TRAININGS)
def test_checkpoints_of_another_training_are_refused(tmp_path, kind):
    tiny_policy(tmp_path / "base")
    tiny_policy(tmp_path / "other_base", seed=5)
    write_rollouts(tmp_path / "rollouts.jsonl")
    write_rollouts(tmp_path / "other_rollouts.jsonl", right=0.75)
    _, _, made = TRAININGS[kind]
    train(kind, made, tmp_path)
    last = checkpoint_folders(tmp_path / "work")[-1]
    assert is_whole(last)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()

    seeded, faster = dataclasses.replace(made, seed=9), dataclasses.replace(made, learning_rate=0.125)
    refusals = [
        (seeded, {}, f"recipe.seed was {made.seed}, now 9"),
        (faster, {}, f"recipe.learning_rate was {made.learning_rate}, now 0.125"),
        (made, {"base": "other_base"}, "(base|policy) was"),
    ]
    if kind != "policy":
        refusals.append((made, {"rollouts": "other_rollouts"}, "rollouts was"))
    for changed, options, words in refusals:
        with pytest.raises(ValueError, match=rf"another training: {words}.*--overwrite\)") as caught:
            train(kind, changed, tmp_path, **options)
        assert "\n" not in str(caught.value)
    assert is_whole(last)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    train(kind, seeded, tmp_path, overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != weights


def test_checkpoints_of_nobody_knows_what_are_refused(tmp_path):
    (tmp_path / "work").mkdir()
    left = leave_a_checkpoint(tmp_path / "work")
    with pytest.raises(ValueError, match=r"holds checkpoints and no made_of.json that says of what"):
        train_policy(recipe(), tmp_path / "out", tmp_path / "work")
    (tmp_path / "work" / "made_of.json").write_text("[")
    with pytest.raises(ValueError, match=r"made_of.json is damaged"):
        train_policy(recipe(), tmp_path / "out", tmp_path / "work")
    assert left.exists()


def test_a_folder_without_checkpoints_holds_nobody_to_anything(tmp_path):
    for seed in (0, 1):
        with Checkpoints(tmp_path, {"seed": seed}).opened() as start:
            assert start is None
    leave_a_checkpoint(tmp_path)
    with (
        pytest.raises(ValueError, match="seed was 1, now 0"),
        Checkpoints(tmp_path, {"seed": 0}).opened(),
    ):
        pass


def test_two_trainings_in_one_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    with (
        checkpoints.opened(),
        pytest.raises(ValueError, match="another training is writing to"),
        checkpoints.opened(),
    ):
        pass
    with checkpoints.opened():
        pass


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


TEARS = {
    "cut weights": lambda folder: cut(folder / "model.safetensors"),
    "cut optimizer": lambda folder: cut(folder / "optimizer.pt"),
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "no mark": lambda folder: (folder / "whole.json").unlink(),
    "cut mark": lambda folder: cut(folder / "whole.json"),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A training that was stopped after its second checkpoint, `work`, and what it ends in undisturbed, `whole`."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patched:
        every_two_steps(patched)
        train_policy(recipe(), folder / "whole", folder / "work")
    assert [path.name for path in checkpoint_folders(folder / "work")] == ["checkpoint-4", "checkpoint-6"]
    return folder


def every_two_steps(patched: pytest.MonkeyPatch) -> None:
    def arguments_of(*args, **options):
        return made(*args, **options, save_steps=2)

    made = arguments.training_arguments
    patched.setattr("engine.training.policy.training_arguments", arguments_of)


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_passed_over(stopped, tmp_path, monkeypatch, capsys, tear):
    every_two_steps(monkeypatch)
    work = shutil.copytree(stopped / "work", tmp_path / "work")
    TEARS[tear](work / "checkpoint-6")
    train_policy(recipe(), tmp_path / "out", work)
    said = f"{work / 'checkpoint-6'} is not whole and is passed over: training goes on from checkpoint-4"
    assert said in capsys.readouterr().err
    assert is_whole(work / "checkpoint-6")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (stopped / "whole" / name).read_bytes()


def test_a_training_whose_checkpoints_are_all_torn_starts_anew(stopped, tmp_path, monkeypatch, capsys):
    every_two_steps(monkeypatch)
    work = shutil.copytree(stopped / "work", tmp_path / "work")
    for folder in checkpoint_folders(work):
        cut(folder / "model.safetensors")
    train_policy(recipe(), tmp_path / "out", work)
    assert "is passed over: training goes on from the start" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (stopped / "whole/model.safetensors").read_bytes()


def test_a_full_disk_while_a_checkpoint_is_written(stopped, tmp_path, monkeypatch):
    """The optimizer's file is the largest: the weights of the torn checkpoint are there."""
    every_two_steps(monkeypatch)
    work = shutil.copytree(stopped / "work", tmp_path / "work")
    shutil.rmtree(work / "checkpoint-6")
    limit = (work / "checkpoint-4" / "model.safetensors").stat().st_size + 1000
    with pytest.raises(OSError, match=f"{work} cannot be written"), file_size_limit(limit):
        train_policy(recipe(), tmp_path / "out", work)
    assert not is_whole(work / "checkpoint-6")
    assert is_whole(work / "checkpoint-4")
    assert not (tmp_path / "out").exists()
    train_policy(recipe(), tmp_path / "out", work)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (stopped / "whole/model.safetensors").read_bytes()


@contextlib.contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Files of this process can be no larger, as on a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_model_is_written_whole_or_not_at_all(tmp_path):
    tokenizer = build_tokenizer()
    new = AutoModelForCausalLM.from_pretrained(tiny_policy(tmp_path / "new", seed=4))
    out = tiny_policy(tmp_path / "out")
    (out / "README.md").write_text("a card")
    (out / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    size = (out / "model.safetensors").stat().st_size
    with pytest.raises(OSError, match=f"{out} cannot be written"), file_size_limit(size // 2):
        save_model(out, new, tokenizer)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    save_model(out, new, tokenizer)
    assert (out / "README.md").read_text() == "a card"
    assert not (out / "model.safetensors.index.json").exists()  # it would be read in the place of the new weights
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "new" / "model.safetensors").read_bytes()
    save_model(tmp_path / "fresh", new, tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "out", "fresh"}


def test_a_checkpoint_is_marked_with_all_of_its_files(stopped):
    sizes = json.loads((stopped / "work" / "checkpoint-4" / "whole.json").read_bytes())
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"} <= sizes.keys()


def test_nothing_is_written_into_the_package_unless_it_is_named():
    """Neither `ttc train` nor the commands that make its data, and the calibration, have a default there."""
    package = Path(engine.__file__).parent
    outs = [CalibrateOutput().out, RolloutsOutput().out]
    for command in ("policy", "prm", "orm", "trunk_head", "revision"):
        parameters = inspect.signature(getattr(recipes, command)).parameters
        outs += [parameters[name].default for name in ("out", "work")]
    assert len(set(outs)) == len(outs)
    for out in outs:
        assert not Path(out).is_absolute()
        assert not Path(out).resolve().is_relative_to(package)


def test_a_model_does_not_go_to_a_file(ttc, tmp_path):
    (tmp_path / "file").write_text("mine")
    outcome = ttc("train", "policy", "--out", tmp_path / "file", "--work", tmp_path / "work")
    assert (outcome.status, outcome.err) == (2, f"error: a model goes to a folder, '{tmp_path / 'file'}' is a file\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["[1, 2]", "5", "null", "{}", '{"a": "4"}', '{"a": null}', "[" * 100_000, "{"])
def test_a_damaged_list_of_files_marks_nothing_as_whole(tmp_path, text):
    (tmp_path / "a").write_bytes(b"four")
    (tmp_path / "whole.json").write_text('{"a": 4}')
    assert is_whole(tmp_path)
    (tmp_path / "whole.json").write_text(text)
    assert not is_whole(tmp_path)
