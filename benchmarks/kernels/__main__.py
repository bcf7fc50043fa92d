"""Every op against its peers: time, GB/s, share of the copy bandwidth, TFLOP/s.

    python -m benchmarks.kernels --json out/kernels.json
    python -m benchmarks.kernels --device cuda --op tree_attention

Each result is first checked against the op's reference in float64 (the error budget of ttc_kernels/testing.py). What
fails is not timed, is named at the end, and makes the exit status 1.

The JSON is a list of rows, written anew after every case: `op`, `case`, `dtype`, `impl`, `seconds` (median), `gbps`
(the bytes that the op must move at least, over the time), `share_of_copy` (of a large copy's GB/s in the same run;
over 1 where the data fit a cache), `tflops`, `plan_seconds` (making the plan, apart; null where there is none),
`peers` (seconds by name), `peers_missing` (reasons by name), `hardware`, `commit`. Cases in which a peer wins are in
the table as all others are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from rich.console import Console

from benchmarks.kernels.measure import Session, describe
from benchmarks.kernels.ops import OPS, Op
from benchmarks.kernels.table import show
from benchmarks.options import make_parser
from engine.commands import run_command
from engine.reports.progress import Progress

WIDTH = 180  # columns of the table


def parse_arguments(arguments: Sequence[str] | None, ops: Mapping[str, Op]) -> argparse.Namespace:
    parser = make_parser("kernels", __doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--op", choices=tuple(ops), help="this op alone")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--minutes", type=float, default=11.0, help="start no case after these")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, ops: Mapping[str, Op] = OPS) -> int:
    """Returns the exit status."""
    return run_command(partial(run, parse_arguments(arguments, ops), ops))


def run(args: argparse.Namespace, ops: Mapping[str, Op]) -> int:
    """Times what was asked for and shows it; returns 1 where an op is wrong or has no place on the device."""
    start = time.monotonic()
    torch.set_num_threads(args.threads)
    session = Session.on(args.device)
    left_out = time_cases(args, selected(args, ops, session), session, start)
    session.write(args.json)
    report(session, left_out, args.minutes)
    return 1 if session.failures else 0


def time_cases(
    args: argparse.Namespace, chosen: Sequence[tuple[Op, object]], session: Session, start: float
) -> list[str]:
    """Times cases until the minutes are over, and writes the rows after each; returns the cases that were left out."""
    end, left_out = start + 60 * args.minutes, []
    with Progress("kernels:", len(chosen), max_seconds=end - time.monotonic()) as progress:
        for op, case in chosen:
            name = f"{op.name} {describe(case)}"
            if time.monotonic() > end:
                left_out.append(name)
                continue
            session.measure(op, case)
            session.write(args.json)
            progress.advance(name)
    return left_out


def report(session: Session, left_out: Sequence[str], minutes: float) -> None:
    """Prints the tables, and what was not timed."""
    console = Console(width=WIDTH)
    show(session, console)
    if left_out:
        console.print(f"{len(left_out)} cases were left out after {minutes:g} minutes: " + "; ".join(left_out))
    for name, reason in session.refusals.items():
        console.print(f"{name} refused: {reason}", markup=False)
    for failure in session.failures:
        console.print(f"NOT TIMED: {failure}", markup=False)


def selected(args: argparse.Namespace, ops: Mapping[str, Op], session: Session) -> list[tuple[Op, object]]:
    """The ops and cases of this run. An op asked for by name that has no place on the device is a failure."""
    chosen: list[tuple[Op, object]] = []
    for op in ops.values():
        if args.op not in (None, op.name):
            continue
        if args.device in op.devices:
            chosen += [(op, case) for case in op.cases(args.device)]
        elif args.op:
            session.failures.append(f"{op.name} runs on {', '.join(op.devices)} only, not on {args.device}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
