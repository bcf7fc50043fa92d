"""`python -m benchmarks.paper`: Snell et al. 2024 in miniature, from samples to tables.

It runs the shipped models on the first problems of the home task's test split. Nothing is tuned on them. Every sample
and search goes into a run journal under `--work`, so that a killed run goes on at the problem where it stopped, with
the same command; what is worth most comes first, and `--only tables` makes tables of what is there.

    python -m benchmarks.paper                            # all of it, some hours on 2 cores
    python -m benchmarks.paper --quick                    # 50 problems, one seed
    python -m benchmarks.paper --only tables              # from what has been run so far

Several processes may share the work: each leaves out what another is at. With one thread and core each
(OMP_NUM_THREADS=1 taskset -c 0 ...) two do more than one with two threads.
"""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.equal_flops.larger_policy import LARGE
from benchmarks.options import parse_seeds
from benchmarks.paper.evidence import gather
from benchmarks.paper.models import load_models
from benchmarks.paper.page import write_page
from benchmarks.paper.results import results
from benchmarks.paper.settings import Settings
from benchmarks.paper.stages import STAGES, Study, sample
from engine.commands import parse_numbers, run_app
from engine.errors import UserError
from engine.files import write_atomically

app = typer.Typer(add_completion=False)


@app.command()
def paper(
    num_problems: Annotated[int, typer.Option(help="Of the test split.")] = 500,
    seeds: Annotated[str, typer.Option(help="E.g. 0,1,2.")] = "0,1,2",
    budgets: Annotated[str, typer.Option(help="Generations per problem, from 1 up.")] = "1,4,16,64,256",
    seeds_at_largest: Annotated[int, typer.Option(help="Seeds of a search at a budget above 64.")] = 1,
    num_bin_samples: Annotated[int, typer.Option(help="Samples per problem for the difficulty bins.")] = 256,
    only: Annotated[str | None, typer.Option(help=f"One stage: {', '.join(STAGES)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="50 problems, one seed, budgets up to 64.")] = False,
    reviser: Annotated[str | None, typer.Option(help="Folder of a revision model; by default the shipped one.")] = None,
    large: Annotated[str, typer.Option(help="Folder of a larger policy; empty for no exchange.")] = str(LARGE),
    work: Annotated[str, typer.Option(help="Folder of the run journals.")] = "out/paper",
    json: Annotated[str | None, typer.Option(help="By default paper.json in --work.")] = None,
    html: Annotated[str | None, typer.Option(help="By default paper.html in --work.")] = None,
) -> None:
    """Samples, searches, and writes tables, plots and findings."""
    if only is not None and only not in STAGES:
        raise UserError(f"only must be one of {', '.join(STAGES)}, got {only!r}")
    settings = Settings(
        work=Path(work),
        num_problems=num_problems,
        seeds=tuple(parse_seeds(seeds)),
        budgets=tuple(parse_numbers("budgets", budgets, int)),
        seeds_at_largest=seeds_at_largest,
        num_bin_samples=num_bin_samples,
        reviser=reviser,
        large=large or None,
    )
    settings = settings.quick() if quick else settings
    study = Study.of(settings, load_models(settings))
    if only != "tables":
        sample(study, only)
    if only in (None, "tables"):
        made = results(gather(study))
        json_path, html_path = json or f"{work}/paper.json", html or f"{work}/paper.html"
        write_atomically(json_path, (dumps(made, indent=1, allow_nan=False) + "\n").encode())
        write_page(made, html_path)
        typer.echo(f"{json_path}\n{html_path}")


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:], "python -m benchmarks.paper"))
