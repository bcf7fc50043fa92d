"""The options that the benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.commands import parse_numbers
from engine.errors import UserError

MODELS = ("policy", "prm", "large")  # options that name a folder


def make_parser(module: str, text: str) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.<module>`, which writes its report to --json; `text` is for --help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the report to this file")
    return parser


def check_counts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command with one sentence where a whole number is not at least 1; a seed may be."""
    for name, value in vars(args).items():
        if type(value) is int and value < 1 and name != "seed":
            parser.error(f"{_flag(name)} must be at least 1, got {value}")


def split_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace, **kinds: type) -> None:
    """Replaces the text of the named options, numbers with commas between, by lists; ends the command for others."""
    for name, kind in kinds.items():
        if (text := getattr(args, name)) is not None:
            try:
                setattr(args, name, parse_numbers(_flag(name), text, kind))
            except UserError as error:
                parser.error(str(error))


def parse_seeds(text: str) -> list[int]:
    """Distinct integers from `0,1,2`. Raises UserError for anything else."""
    seeds = parse_numbers("seeds", text, int)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be distinct, got {text!r}")
    return seeds


def settings(args: argparse.Namespace, *left_out: str) -> dict[str, object]:
    """The options that the figures depend on, without the names of folders, for a report may travel."""
    return {name: value for name, value in vars(args).items() if name not in ("json", *MODELS, *left_out)}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
