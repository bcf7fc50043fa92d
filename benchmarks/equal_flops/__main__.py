"""Search strategies on three engines at equal FLOPs: tokens, seconds, model-FLOPs utilisation, bandwidth floor.

    python -m benchmarks.equal_flops --json out/equal_flops.json

The target is what our majority vote over `--num-answers` answers a problem costs, by its ledger. Every other strategy
and engine gets the number of answers whose bill comes closest to it; the bill itself is in the row. On a CPU the
models are the shipped ones, on a GPU random weights in the shapes of Llama-3.2-1B and Qwen2.5-1.5B with an 8B PRM.

`mfu` is the row's FLOPs over its seconds and over the rate of a large matrix product measured in the same run.
`share_of_floor` is the bandwidth floor over the seconds: the weights of the policy read once for every token of the
longest answer and those of the verifier once for every scoring that has to wait for another, at the speed of a large
copy. No engine that batches all problems can be faster; it counts no KV and, for ours, no rollouts. Weights that fit
a CPU's cache can be read faster than it says.

`missing` says which strategies did not run on which engine, and why. The exit status is 1 where one of ours is there.

`--exchange` compares a small model that searches with a larger one instead: benchmarks/equal_flops/larger_policy.py.
`python -m benchmarks.equal_flops.global_budget` compares ways to divide one budget over many problems.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from rich.console import Console

from benchmarks.equal_flops import larger_policy
from benchmarks.equal_flops.engines import Report, all_models, measure, show
from benchmarks.options import make_parser
from engine.commands import run_command


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("equal_flops", __doc__)
    parser.add_argument("--exchange", action="store_true", help="a small model against a larger one: other options")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--policy", help="folder of the policy; by default as the device says")
    parser.add_argument("--prm", help="folder of the process reward model")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU by default")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--num-problems", type=int, default=2)
    parser.add_argument("--num-answers", type=int, default=64, help="of the majority vote that sets the target")
    parser.add_argument("--max-tokens", type=int, help="of an answer; 256 with random weights, else the task's")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-seconds", type=float, default=6.0, help="a run that would take longer is missing")
    args = parser.parse_args(arguments)
    if (args.policy is None) != (args.prm is None):
        parser.error(f"--policy and --prm go together, got {args.policy!r} and {args.prm!r}")
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--exchange" in arguments:
        arguments.remove("--exchange")
        return larger_policy.main(arguments)
    return run_command(partial(run, parse_arguments(arguments)))


def run(args: argparse.Namespace) -> int:
    """Compares the engines and shows the report; returns 1 where ours has not run a strategy."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # its errors come as reasons
    torch.set_num_threads(args.threads)
    report = Report.on(args)
    with tempfile.TemporaryDirectory() as folder:
        for models in all_models(args, Path(folder)):
            measure(models, report)
            gc.collect()  # engines are held in circles: the next one needs the memory
    show(report, Console(width=140))
    return 1 if any(entry["engine"] == "ours" for entry in report.missing) else 0


if __name__ == "__main__":
    sys.exit(main())
