"""`ttc train`, a command per model; each is only imported when it is called."""

from __future__ import annotations

import typer

from engine.cli.options import lazy

train_app = typer.Typer(help="Trains a model of the shipped set; a stopped run goes on.")
for _name, _text in {
    "policy": "Trains the policy from nothing.",
    "prm": "Trains the step verifier from rollouts.",
    "orm": "Trains the verifier of whole answers from labelled answers.",
    "trunk-head": "Trains the score head on the policy's trunk from rollouts.",
    "revision": "Trains a policy to revise its own wrong attempts.",
}.items():
    lazy(train_app, _name, f"engine.cli.recipes:{_name.replace('-', '_')}", _text)
