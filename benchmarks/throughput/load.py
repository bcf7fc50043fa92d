"""Loading a checkpoint of a gigabyte against reading its file: `python -m benchmarks.throughput.load [--json X]`.

A random Llama with layers of Llama-3.2-1B's size is written in each stored type, with as many layers as make a file of
about `--gigabytes`. Every turn reads the file into memory that was never touched before (what any loader must do), and
loads an engine from it, each in a process of its own that has imported everything first; both find the file in the
page cache. `ratio` is the median of the load over the median of the read.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.options import make_parser
from benchmarks.random_models import SHAPES, save_random
from engine.reports.progress import Progress
from engine.results.provenance import provenance, write_json

MODEL, VOCABULARY = "llama-3.2-1b", 8192
PAIRS = (("bfloat16", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16"))  # stored as, loaded as
READ = """
import sys, time
start = time.perf_counter()
with open(sys.argv[1] + "/model.safetensors", "rb", buffering=0) as file:
    data = file.readall()
print(time.perf_counter() - start)
"""
LOAD = """
import sys, time
import torch
from engine import Engine
from engine.model.loader import HOME
Engine.load(HOME / "policy")  # all that is imported late
start = time.perf_counter()
Engine.load(sys.argv[1], dtype=sys.argv[2], num_blocks=64)
print(time.perf_counter() - start)
"""


def measure(folder: Path, stored: str, loaded: str, num_repeats: int, progress: Progress) -> dict[str, object]:
    """One row: `read_seconds` and `load_seconds` of every turn, and their ratio."""
    seconds: dict[str, list[float]] = {"read": [], "load": []}
    for _ in range(num_repeats):
        for name, code in (("read", READ), ("load", LOAD)):
            command = [sys.executable, "-c", code, str(folder), loaded]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds[name].append(float(done.stdout))
            progress.advance(f"{name}, {stored} as {loaded}")
    return {
        "stored": stored,
        "loaded": loaded,
        "bytes": (folder / "model.safetensors").stat().st_size,
        **{f"{name}_seconds": values for name, values in seconds.items()},
        "ratio": statistics.median(seconds["load"]) / statistics.median(seconds["read"]),
    }


def save(folder: Path, stored: str, gigabytes: float) -> Path:
    """A random checkpoint whose file takes about `gigabytes`."""
    config = SHAPES[MODEL][1]
    size = config.hidden_size
    per_layer = size * (2 * size + 2 * config.num_key_value_heads * config.head_dim + 3 * config.intermediate_size)
    dtype = getattr(torch, stored)
    num_layers = max(1, round((gigabytes * 1e9 / dtype.itemsize - VOCABULARY * size) / per_layer))
    return save_random(MODEL, folder, "cpu", dtype, num_hidden_layers=num_layers, vocab_size=VOCABULARY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("throughput.load", __doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the file")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(arguments)
    if args.gigabytes <= 0 or args.repeats < 1:
        parser.error(f"gigabytes and repeats must be above 0, got {args.gigabytes} and {args.repeats}")
    report = provenance() | {"rows": measure_all(args.gigabytes, args.repeats)}
    write_json(args.json, report)
    show(report["rows"])
    return 0


def measure_all(gigabytes: float, num_repeats: int) -> list[dict]:
    """A row for every pair of types."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch, Progress("loading:", 2 * len(PAIRS) * num_repeats) as progress:
        for stored in dict.fromkeys(stored for stored, _ in PAIRS):
            folder = save(Path(scratch) / stored, stored, gigabytes)
            rows += [measure(folder, *pair, num_repeats, progress) for pair in PAIRS if pair[0] == stored]
    return rows


def show(rows: Sequence[dict]) -> None:
    table = Table("stored", "loaded", "GB", "read (s)", "load (s)", "load / read")
    for row in rows:
        times = [f"{statistics.median(row[name]):.2f}" for name in ("read_seconds", "load_seconds")]
        table.add_row(row["stored"], row["loaded"], f"{row['bytes'] / 1e9:.2f}", *times, f"{row['ratio']:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())
