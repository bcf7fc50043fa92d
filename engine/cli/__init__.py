"""The command line, `ttc`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from engine.cli import env, report, search, train

app = typer.Typer(
    add_completion=False,
    help="Searches over the answers of a language model, against a verifier, within a compute budget.",
)
app.command("search")(search.search)
app.command("report")(report.report)
app.command("env")(env.env)
app.add_typer(train.train_app, name="train")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default this process's own, and returns its exit status.

    0: done. 2: an error that the user can mend, told in one sentence on stderr. 130: interrupted.
    Anything else that goes wrong is a bug and keeps its traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        status = typer.main.get_command(app).main(argv, prog_name="ttc", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # who reads our output has left, as in `ttc env | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        return _refuse(_sentence(error))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _refuse(error.format_message())  # the parser's: an unknown option, a value of another type


def _sentence(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _refuse(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 2
