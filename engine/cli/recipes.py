"""The commands that a recipe describes; importing this module imports torch and transformers."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated

import typer

from engine.model import HOME
from engine.tasks.chain import ChainConfig, config_from_options
from engine.training.policy import PolicyRecipe, train_policy

_DATA_HELP = "A knob of the problems as name=value, e.g. max_depth=6; may be repeated."


def build_command(name: str) -> typer.core.TyperCommand:
    """The command of a name, its options read from its recipe."""
    app = typer.Typer(add_completion=False)
    app.command(name)(_COMMANDS[name]())
    return typer.main.get_command(app)


def _policy_command() -> Callable[..., None]:
    def run(
        recipe: PolicyRecipe,
        out: Annotated[str, typer.Option(help="Folder of the trained model.")] = str(HOME / "policy"),
        work: Annotated[
            str, typer.Option(help="Folder of the checkpoints to go on from.")
        ] = "out/train/policy",
        device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    ) -> None:
        """Trains the policy from nothing: next-token loss on worked answers."""
        train_policy(recipe, Path(out), Path(work), device)
        typer.echo(f"policy trained on {recipe.num_tokens:,} tokens: {out}")

    return with_recipe(PolicyRecipe, run)


_COMMANDS = {"policy": _policy_command}


def with_recipe(recipe_class: type, run: Callable[..., None]) -> Callable[..., None]:
    """`run` with its first parameter, a recipe, replaced by one option per field of it."""
    names = [field.name for field in fields(recipe_class)]

    def command(**values: object) -> None:
        chosen = {name: values.pop(name) for name in names}
        if "data" in chosen:
            chosen["data"] = _parse_data(chosen["data"])
        run(recipe_class(**chosen), **values)

    own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    parameters = [_parameter(recipe_class, field) for field in fields(recipe_class)]
    parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = run.__doc__
    return command


def _parameter(recipe_class: type, field) -> inspect.Parameter:
    """The option of a field: its type and default, or repeated name=value pairs for a ChainConfig."""
    annotation = typing.get_type_hints(recipe_class)[field.name]
    default = field.default if field.default is not MISSING else field.default_factory()
    if annotation is ChainConfig:
        annotation = Annotated[list[str] | None, typer.Option(help=_DATA_HELP)]
        default = None
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _parse_data(pairs: list[str] | None) -> ChainConfig:
    """Raises ValueError for what is no name=value pair."""
    options = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign:
            raise ValueError(f"--data needs name=value, got {pair!r}")
        options[name] = value
    return config_from_options(options)
