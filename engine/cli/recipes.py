"""`ttc train`: one command per model; importing this module imports torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import transformers
import typer

from engine.cli.options import Pairs, command, field_docs, option
from engine.cli.rollouts import ROLLOUTS
from engine.config import EngineConfig
from engine.errors import UserError
from engine.model import resolve_device, resolve_folder
from engine.tasks.walks import WalksConfig, as_pairs, config_from_options
from engine.training.mixes import Rollouts
from engine.training.orm import ORMRecipe, train_orm
from engine.training.policy import PolicyRecipe, train_policy
from engine.training.prm import PRMRecipe, TrunkHeadRecipe, train_prm, train_trunk_head
from engine.training.revision import RevisionRecipe, train_revision

_ATTEMPTS = "out/attempts.jsonl"  # many answers to a question, labelled by their own ends

Out = Annotated[str, option("Folder of the trained model.")]
Work = Annotated[str, option("Folder of the checkpoints that a stopped run goes on from.")]
Overwrite = Annotated[bool, option("Drop the checkpoints in --work.", "--overwrite")]
Device = Annotated[str, option("cpu or cuda.")]
Policy = Annotated[str, option(field_docs(EngineConfig)["policy"])]
Files = Annotated[
    str, option("File that `ttc rollouts` wrote; several with commas between, or a mix: a.jsonl=0.3,b.jsonl=0.7.")
]

transformers.utils.logging.disable_progress_bar()  # stderr is for our own lines


def _changed(data: WalksConfig, pairs: list[str] | None) -> WalksConfig:
    """`data` with some options set. Raises UserError for what is no name=value pair of it."""
    return config_from_options(as_pairs(pairs or ()), data)


KNOBS = {WalksConfig: Pairs("An option of the problems as name=value, e.g. max_walks=4; may be repeated.", _changed)}


@command(pairs=KNOBS)
def policy(
    recipe: PolicyRecipe,
    out: Out = "out/policy",
    work: Work = "out/train/policy",
    base: Annotated[str | None, option("Hugging Face folder to go on from, its shape included.")] = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Trains the policy: next-token loss on worked answers, from nothing or from --base."""
    resolve_device(device)
    train_policy(recipe, _folder(out), Path(work), device, resolve_folder(base) if base else None, overwrite)
    typer.echo(f"policy trained, {recipe.num_updates:,} updates of {recipe.tokens_per_step:,} tokens: {out}")


@command(pairs=KNOBS)
def prm(
    recipe: PRMRecipe,
    rollouts: Files = ROLLOUTS,
    base: Annotated[str, option("Hugging Face folder whose weights it starts from.")] = "home",
    out: Out = "out/prm",
    work: Work = "out/train/prm",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Trains the step verifier from rollouts; it starts from the policy's weights, or from --base."""
    resolve_device(device)
    folders = resolve_folder(base), _folder(out), Path(work)
    figures = train_prm(_rollouts(rollouts), *folders, recipe, device, overwrite)
    _say("prm", figures, out)


@command(pairs=KNOBS)
def orm(
    recipe: ORMRecipe,
    rollouts: Files = _ATTEMPTS,
    base: Annotated[str, option("Hugging Face folder whose weights it starts from.")] = "home",
    out: Out = "out/orm",
    work: Work = "out/train/orm",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Trains the verifier of whole answers, with and without earlier attempts before them."""
    resolve_device(device)
    folders = resolve_folder(base), _folder(out), Path(work)
    figures = train_orm(_rollouts(rollouts), *folders, recipe, device, overwrite)
    _say("orm", figures, out)


@command(pairs=KNOBS)
def trunk_head(
    recipe: TrunkHeadRecipe,
    rollouts: Files = ROLLOUTS,
    policy: Policy = "home",
    out: Out = "out/trunk_head",
    work: Work = "out/train/trunk_head",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Trains a score head on the frozen trunk of the policy, from rollouts."""
    resolve_device(device)
    figures = train_trunk_head(
        _rollouts(rollouts), resolve_folder(policy), _folder(out), Path(work), recipe, device, overwrite
    )
    _say("trunk head", figures, out)


@command(pairs=KNOBS)
def revision(
    recipe: RevisionRecipe,
    rollouts: Files = _ATTEMPTS,
    base: Annotated[str, option("Hugging Face folder of the policy that it starts from.")] = "home",
    out: Out = "out/reviser",
    work: Work = "out/train/revision",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Trains a policy to answer anew after attempts of its own, from `ttc rollouts --num-rollouts 0`."""
    resolve_device(device)
    figures = train_revision(
        _rollouts(rollouts), resolve_folder(base), _folder(out), Path(work), recipe, device, overwrite
    )
    _say("revision model", figures, out)


def _folder(out: str) -> Path:
    """Raises UserError for what a model cannot be written to, which is better known before the training."""
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"a model goes to a folder, {out!r} is a file")
    return Path(out)


def _rollouts(names: str) -> Rollouts:
    """The files of `a,b`, or with weights those of `a=0.3,b=0.7`. Raises UserError where some have none."""
    pairs = [_weighted(part) for part in names.split(",")]
    if not any(weight is not None for _, weight in pairs):
        return [path for path, _ in pairs]
    for path, weight in pairs:
        if weight is None:
            raise UserError(f"either all files have a weight or none has, got {str(path)!r} without one in {names!r}")
        if [other for other, _ in pairs].count(path) > 1:
            raise UserError(f"a file of a mix is named once, got {str(path)!r} twice in {names!r}")
    return dict(pairs)


def _weighted(part: str) -> tuple[Path, float | None]:
    name, sign, number = part.rpartition("=")
    if not sign or Path(part).exists():
        return Path(part), None
    try:
        return Path(name), float(number)
    except ValueError:
        raise UserError(f"the weight of a file must be a number over 0, got {part!r}") from None


def _say(what: str, figures: dict, out: str) -> None:
    """The figures in a line each for the files of a mix, and one for all."""
    for name, found in figures.pop("by_file", {}).items():
        typer.echo(f"{name}: {_shown(found)}")
    typer.echo(f"{what} trained, {_shown(figures)}: {out}")


def _shown(figures: dict[str, float | str]) -> str:
    forms = {str: "", int: ","}
    return ", ".join(
        f"{name.replace('_', ' ')} {format(value, forms.get(type(value), '.4g'))}" for name, value in figures.items()
    )
