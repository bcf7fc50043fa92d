"""What holds for every command: help at once, one sentence or a traceback, progress on stderr."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer

from engine.commands import run_app
from engine.errors import UserError
from engine.reports.progress import RunProgress
from tests.reports.builders import make_row

COMMANDS = ("search", "calibrate", "exchange", "report", "env", "train", "rollouts", "merge")


def test_help(ttc):
    for arguments in ([], ["--help"]):
        outcome = ttc(*arguments)
        assert outcome.status == 0
        assert all(name in outcome.out for name in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "train policy", "train prm", "train trunk-head"])
def test_help_of_a_command(ttc, command):
    outcome = ttc(*command.split(), "--help")
    assert outcome.status == 0
    assert f"Usage: ttc {command} " in outcome.out


def test_help_imports_nothing_heavy():
    code = "import sys; from engine.cli import main; main([]); main(['search', '--help']); "
    code += "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("budget must be\n   at least 1, got  0"), 2, "error: budget must be at least 1, got  0\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.jsonl"),
            2,
            "error: x.jsonl: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(7), 7, ""),
    ],
    ids=repr,
)
def test_errors(capsys, error, status, line):
    assert run_app(app_that_raises(error), [], "ttc") == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("zip() argument 2 is shorter")], ids=repr)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error), match=re.escape(str(error))):
        run_app(app_that_raises(error), [], "ttc")


def app_that_raises(error: BaseException) -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.command()
    def fail() -> None:
        raise error

    return app


def test_plain_progress_is_ten_lines(capsys):
    rows = [make_row(str(index), correct=index % 2 == 0) for index in range(40)]
    rows[39] = make_row("39", correct=None)
    with RunProgress("problems", 40, rows[:10]) as progress:
        for row in rows[10:]:
            progress.add(row)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert [line.split(",")[0] for line in lines] == [f"problems {count}/40" for count in range(12, 41, 4)]
    assert lines[0] == "problems 12/40, accuracy 50.0 %"
    assert lines[-1] == "problems 40/40, accuracy 51.3 %"
    assert progress.accuracy == "accuracy 51.3 %"
