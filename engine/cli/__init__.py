"""The command line, `ttc`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from engine.cli import calibrate, env, exchange, grade, report, search, train, verify
from engine.commands import run_app

app = typer.Typer(
    add_completion=False,
    help="Searches over the answers of a language model, against a verifier, within a compute budget.",
)
app.command("search")(search.search)
app.command("calibrate")(calibrate.calibrate)
app.command("exchange")(exchange.exchange)
app.command("report")(report.report)
app.command("verify")(verify.verify)
app.command("grade")(grade.grade)
app.command("env")(env.env)
app.add_typer(train.train_app, name="train")
train.add_recipe(app, "rollouts", "Labels the steps of sampled answers by rollouts, to train verifiers on.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default this process's own, and returns its exit status (see `run_app`)."""
    argv = sys.argv[1:] if argv is None else argv
    return run_app(app, argv or ["--help"], "ttc")
