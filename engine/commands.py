"""What every command line shares, `ttc` and the benchmarks: errors become exit statuses, options become numbers."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import typer

from engine.errors import UserError, sentence

Number = TypeVar("Number", int, float)


def run_app(app: typer.Typer, argv: Sequence[str], name: str) -> int:
    """Runs the command line of a typer app and returns its exit status (see `run_command`)."""
    command = typer.main.get_command(app)
    return run_command(lambda: command.main(list(argv), prog_name=name, standalone_mode=False), argv)


def run_command(command: Callable[[], object], argv: Sequence[str] = ()) -> int:
    """Calls `command` and returns an exit status: its own where it returns one, else 0.

    2: an error that the user can mend, told in one sentence on stderr. 130: interrupted.
    A warning is a line on stderr. Anything else that goes wrong is a bug and keeps its traceback. `argv` is what a
    parser's error may have to quote.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell
            status = command()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # who reads our output has left, as in `ttc env | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        return _refuse(sentence(error))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _refuse(_usage(error, argv))  # the parser's: an unknown option, a value of another type


def parse_numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """`[1, 4, 16]` from `1,4,16`. Raises UserError, with the option's name, for anything else."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{name} must be {whole} with commas between, got {text!r}") from None


def _usage(error: Exception, argv: Sequence[str]) -> str:
    """The parser's message, with the value that it did not understand where it leaves that out."""
    message = error.format_message().rstrip(".")
    names = getattr(getattr(error, "param", None), "opts", ())
    for word, following in reversed(list(zip(argv, [*argv[1:], ""], strict=True))):  # the last one counts
        name, has_value, value = word.partition("=")
        value = value if has_value else following
        if name in names and value and repr(value) not in message:
            return f"{message}, got {value!r}"
    return message


def _refuse(message: str) -> int:
    print("error:", _one_line(message), file=sys.stderr)
    return 2


def _tell(message: Warning | str, *_: object) -> None:
    print("warning:", _one_line(str(message)), file=sys.stderr)


def _one_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines())
