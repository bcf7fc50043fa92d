"""`ttc train` and `ttc rollouts`, whose options are the fields of a recipe."""

from __future__ import annotations

import typer
from typer.core import TyperCommand


class RecipeCommand(TyperCommand):
    """Takes its options from a recipe, which is only imported (with torch, in seconds) when it is called."""

    def make_context(self, info_name, args, parent=None, **extra):
        from engine.cli.recipes import build_command

        return build_command(self.name).make_context(info_name, args, parent, **extra)


def add_recipe(app: typer.Typer, name: str, text: str) -> None:
    """Registers a command of `engine.cli.recipes` by name, with its line in the list of commands."""
    app.command(name, cls=RecipeCommand, help=text)(lambda: None)


train_app = typer.Typer(help="Trains a model of the shipped set; a stopped run goes on.")
add_recipe(train_app, "policy", "Trains the policy from nothing.")
add_recipe(train_app, "discriminator", "Trains what the step verifier may start from; needs no label.")
add_recipe(train_app, "prm", "Trains the step verifier from rollouts.")
add_recipe(train_app, "orm", "Trains the verifier of whole answers from labelled answers.")
add_recipe(train_app, "trunk-head", "Trains the score head on the policy's trunk from rollouts.")
add_recipe(train_app, "revision", "Trains a policy to revise its own wrong attempts.")
