"""The command line, `ttc`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from engine.cli.options import lazy
from engine.cli.train import train_app
from engine.commands import run_app

app = typer.Typer(
    add_completion=False,
    help="Searches over the answers of a language model, against a verifier, within a compute budget.",
)
for _name, _text in {
    "search": "Searches for the answers of problems, within a budget each.",
    "calibrate": "Measures strategies and budgets by difficulty, for `ttc search --strategy compute-optimal`.",
    "exchange": "Says whether total FLOPs are better spent on a larger model or on searching with the small one.",
    "report": "Shows accuracy and cost per strategy, and writes a page with charts and search trees.",
    "verify": "Shows how well a verifier's scores fit the labels of held-out answers.",
    "merge": "Puts the shards of a run together, as one run would have written them.",
    "grade": "Grades the answers of a result file again, ours or another tool's.",
    "serve": "Serves searches to clients of OpenAI's API, and a page to try them.",
    "env": "Prints versions, the CPU, the native module and the shipped models.",
    "rollouts": "Labels the steps of sampled answers by rollouts, to train verifiers on.",
}.items():
    lazy(app, _name, f"engine.cli.{_name}:{_name}", _text)
app.add_typer(train_app, name="train")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default this process's own, and returns its exit status (see `run_app`)."""
    argv = sys.argv[1:] if argv is None else argv
    return run_app(app, argv or ["--help"], "ttc")
