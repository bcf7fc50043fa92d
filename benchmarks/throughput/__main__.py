"""Our engine against transformers on a CPU: best-of-N sampling, beam search with a PRM, cost against N.

    python -m benchmarks.throughput --json out/throughput.json

Both sides run in one process with the same threads, on the same checkpoints and prompts, turn by turn; figures
are medians over the repeats, and all repeats are in the JSON. transformers has the faster of its sdpa and
eager attention, chosen for each comparison by a timed trial after a warm-up.

* Best-of-N: `--num-answers` samples of each prompt at temperature 1, exactly `--num-new` tokens each (both
  sides read a copy of the checkpoint that names no end-of-text token). transformers: one `generate` per
  prompt. `speedup` is the ratio of tokens per second with our side working on one prompt at a time too,
  `speedup_batched` with all prompts in one continuous batch.
* Beam search: benchmarks/throughput/plain.py against `Engine.search`, the same selection rule. The two draw
  different texts, so `speedup` is the ratio of *generated tokens per second*, one problem at a time on both sides;
  `speedup_batched` has our side search all problems at once. Seconds per problem are beside it.
* Cost: best-of-N on one prompt, our side alone, with the KV memory that it holds and what it would hold if
  every answer had a prompt of its own.

Our side starts every timed call with an empty prefix cache. Nothing is timed before both sides have been found
to compute the same logits and scores. `others_share` is the part of the machine that other processes took
meanwhile: figures with more than a few percent there mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.options import make_parser, settings, split_numbers
from benchmarks.throughput.beam import beam
from benchmarks.throughput.sampling import best_of_n, cost_against_n, without_end_of_text
from engine.commands import run_command
from engine.model import resolve_folder
from engine.reports.progress import Progress
from engine.results.provenance import Bystanders, provenance, write_json


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("throughput", __doc__)
    parser.add_argument("--policy", default="home", help="folder of the policy")
    parser.add_argument("--prm", default="home", help="folder of the process reward model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of best-of-N; the rest is float32")
    parser.add_argument("--num-prompts", type=int, default=3, help="of best-of-N")
    parser.add_argument("--num-answers", type=int, default=256, help="per prompt of best-of-N")
    parser.add_argument("--num-new", type=int, default=96, help="tokens per answer of best-of-N")
    parser.add_argument("--num-problems", type=int, default=6, help="of beam search")
    parser.add_argument("--budget", type=int, default=64, help="of beam search, in answers")
    parser.add_argument("--width", type=int, default=4, help="children of a kept step")
    parser.add_argument("--cost", default="16,64,256,1024", help="numbers of answers of the cost table")
    args = parser.parse_args(arguments)
    split_numbers(parser, args, cost=int)
    args.dtypes = args.dtypes.split(",")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return run_command(partial(run, parse_arguments(arguments)))


def run(args: argparse.Namespace) -> None:
    """Times everything, writes the report and shows it."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    bystanders = Bystanders()
    names = {"policy": Path(args.policy).name, "prm": Path(args.prm).name}
    report = provenance() | {"settings": settings(args) | names}
    report |= measure(args)
    report["hardware"]["others_share"] = bystanders.share()
    write_json(args.json, report)
    show(report, Console())


def measure(args: argparse.Namespace) -> dict[str, object]:
    """The figures of the three parts."""
    policy, prm = resolve_folder(args.policy), resolve_folder(args.prm, "prm")
    num_parts = args.repeats * (3 * len(args.dtypes) + 3 + len(args.cost))
    with tempfile.TemporaryDirectory() as folder, Progress("timed runs:", num_parts) as progress:
        endless = without_end_of_text(policy, Path(folder))
        by_dtype = {dtype: best_of_n(endless, dtype, args, progress) for dtype in args.dtypes}
        return {
            "best_of_n": {"speedup": next(iter(by_dtype.values()))["speedup"], **by_dtype},
            "beam": beam(policy, prm, args, progress),
            "cost": cost_against_n(endless, args, progress),
        }


def show(report: dict, console: Console) -> None:
    """The report as tables."""
    machine = report["hardware"]
    console.print(
        f"{machine['cpu']}, {machine['num_threads']} threads, {machine['instruction_set']}; "
        f"commit {report['commit']}; " + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    )
    if machine["others_share"] is not None and machine["others_share"] > 0.05:
        console.print(f"Not to be trusted: other processes took {machine['others_share']:.0%} of the machine.")
    console.print(speed_table(report))
    seconds = {side: report["beam"][f"{side}_seconds_per_problem"] for side in ("theirs", "ours", "ours_batched")}
    console.print(
        "Beam search, seconds per problem: transformers {theirs:.2f}, ours {ours:.3f}, "
        "ours batched {ours_batched:.3f}".format(**seconds)
    )
    console.print(cost_table(report["cost"]))


def speed_table(report: dict) -> Table:
    table = Table("tokens per second", "transformers", "ours", "speed-up", "ours, batched", "speed-up")
    sections = {f"best-of-N, {key}": value for key, value in report["best_of_n"].items() if key != "speedup"}
    for name, figures in {**sections, "beam search": report["beam"]}.items():
        table.add_row(
            name,
            f"{figures['theirs_tokens_per_second']:,.0f} ({figures['theirs_attention']})",
            f"{figures['ours_tokens_per_second']:,.0f}",
            f"{figures['speedup']:.1f}",
            f"{figures['ours_batched_tokens_per_second']:,.0f}",
            f"{figures['speedup_batched']:.1f}",
        )
    return table


def cost_table(rows: Sequence[dict]) -> Table:
    table = Table("answers", "seconds", "tokens per second", "KV, shared", "KV, unshared")
    for row in rows:
        table.add_row(
            str(row["num_answers"]),
            f"{row['seconds']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['kv_bytes'] / 2**20:.1f} MiB",
            f"{row['kv_bytes_unshared'] / 2**20:.1f} MiB",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
