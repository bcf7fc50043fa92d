"""How the options of a command are declared."""

from __future__ import annotations

import typer


def option(text: str, panel: str, *names: str):
    """An option with its help, under a heading; `names` where they do not follow from the parameter's."""
    return typer.Option(*names, help=text, rich_help_panel=panel)
