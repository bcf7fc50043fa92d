"""`ttc merge`: the files of a run's shards in, the file of the whole run out."""

from __future__ import annotations

from typing import Annotated

import typer


def merge(
    shards: Annotated[list[str], typer.Argument(help="Files of --shard, or their ledgers.", show_default=False)],
    out: Annotated[str, typer.Option(help="The file of the whole run; its ledger stands beside it.")] = "results.jsonl",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop what --out holds.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Write what is there, though shards or rows are missing.")
    ] = False,
) -> None:
    """Puts the shards of a run together, as one run would have written them.

    Rows come in input order, each problem once. Shards that are missing or unfinished are named. Shards that were not
    named but stand beside the others are found.
    """
    from engine.cli.outputs import failures
    from engine.cli.runs import check_out
    from engine.results import merge_shards

    check_out(out, *shards)
    rows, note = merge_shards(shards, out, overwrite=overwrite, allow_missing=allow_missing)
    typer.echo(", ".join(filter(None, (f"{len(rows)} rows of {note}", failures(rows)))) + f": {out}")
