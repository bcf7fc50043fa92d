"""Every op against its peers: time, GB/s, share of the copy bandwidth, TFLOP/s.

    python -m benchmarks.kernels --json out/kernels.json
    python -m benchmarks.kernels --device cuda --op tree_attention

Each result is first checked against the op's reference in float64 (the error budget of ttc_kernels/testing.py). What
fails is not timed, is named at the end, and makes the exit status 1.

The JSON is a list of rows, written anew after every case: `op`, `case`, `dtype`, `impl`, `seconds` (median), `gbps`
(the bytes that the op must move at least, over the time), `share_of_copy` (of a large copy's GB/s in the same run;
over 1 where the data fit a cache), `tflops`, `plan_seconds` (making the plan, apart; null where there is none),
`peers` (seconds by name), `peers_missing` (reasons by name), `hardware`, `commit`. Cases in which a peer wins stand in
the table as all others do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import trees
from benchmarks.clock import Clock, check_device, copy_bandwidth, machine
from benchmarks.gpu_peers import Missing
from benchmarks.hardware import Bystanders, commit
from benchmarks.ops import OPS, Op
from benchmarks.peers import peers

WIDTH = 180  # columns of the table
IMPLS = {"cpu": ("native",), "cuda": ("triton", "cuda")}


@dataclass
class Run:
    """The surroundings of all rows, and what has come of them."""

    device: str
    clock: Clock
    copy_gbps: float
    hardware: dict[str, object]
    commit: str | None
    rows: list[dict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # red checks, ops that nothing computes
    refusals: dict[str, str] = field(default_factory=dict)  # by op and implementation, the first one's reason


def parse_arguments(arguments: Sequence[str] | None, ops: Mapping[str, Op]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--op", choices=tuple(ops), help="this op alone")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--minutes", type=float, default=11.0, help="start no case after so many")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, ops: Mapping[str, Op] = OPS) -> int:
    """The exit status."""
    args = parse_arguments(arguments, ops)
    console, start = Console(width=WIDTH), time.monotonic()
    torch.set_num_threads(args.threads)
    try:
        check_device(args.device)
    except ValueError as error:
        console.print(f"error: {error}")
        return 2
    bystanders, clock = Bystanders(), Clock(args.device)
    run = Run(args.device, clock, copy_bandwidth(clock), machine(args.device), commit())
    run.hardware["copy_gbps"] = run.copy_gbps
    left_out = []
    for op, case in selected(args, ops, run):
        if time.monotonic() - start > 60 * args.minutes:
            left_out.append(f"{op.name} {describe(case)}")
            continue
        measure(op, case, run)
        write(args.json, run, bystanders)
    write(args.json, run, bystanders)
    show(run, console)
    if left_out:
        console.print(f"{len(left_out)} cases were left out after {args.minutes:g} minutes: " + "; ".join(left_out))
    for name, reason in run.refusals.items():
        console.print(f"{name} refused: {reason}", markup=False)
    for failure in run.failures:
        console.print(f"NOT TIMED: {failure}", markup=False)
    return 1 if run.failures else 0


def selected(args: argparse.Namespace, ops: Mapping[str, Op], run: Run) -> Iterator[tuple[Op, object]]:
    """The ops and cases of this run. An op asked for by name that has no place on the device is a failure."""
    for op in ops.values():
        if args.op not in (None, op.name):
            continue
        if args.device in op.devices:
            yield from ((op, case) for case in op.cases(args.device))
        elif args.op:
            run.failures.append(f"{op.name} runs on {', '.join(op.devices)} only, not on {args.device}")


def measure(op: Op, case, run: Run) -> None:
    """Adds the rows of a case: one for every implementation that takes it and is right."""
    inputs = op.inputs(case, run.device)
    label = f"{op.name} {describe(case)} {dtype_name(case)}"
    refused, is_red = [], False
    for impl in IMPLS[run.device]:
        try:
            op.check(case, impl, inputs)
        except ValueError as error:  # not offered, or not for such inputs
            run.refusals.setdefault(f"{op.name} {impl}", str(error))
            refused.append(f"{impl}: {error}")
        except Exception as error:  # a red check, or a kernel that breaks
            is_red = True
            run.failures.append(f"{label}, {impl}: {type(error).__name__}: {error}")
        else:
            run.rows.append(row(op, case, impl, inputs, run))
    if len(refused) == len(IMPLS[run.device]) and not is_red:
        run.failures.append(f"{label}: no implementation takes it on {run.device} ({'; '.join(refused)})")


def row(op: Op, case, impl: str, inputs: dict, run: Run) -> dict[str, object]:
    """One line of the table."""
    seconds, timer = run.clock.median(op.bind(case, impl, inputs))
    plan = op.plan(case)
    gbps = number(case.num_bytes) / seconds / 1e9
    times, missing = {}, {}
    for name, build in peers(op, case, run.device, inputs, impl):
        try:
            times[name] = run.clock.median(build())[0]
        except Missing as reason:
            missing[name] = str(reason)
        except Exception as error:  # somebody else's code: its failure is a reason as well
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    return {
        "op": op.name,
        "case": describe(case),
        "dtype": dtype_name(case),
        "impl": impl,
        "seconds": seconds,
        "gbps": gbps,
        "share_of_copy": gbps / run.copy_gbps,
        "tflops": number(case.flops) / seconds / 1e12,
        "plan_seconds": None if plan is None else Clock("cpu", max_seconds=0.02).median(plan)[0],
        "peers": times,
        "peers_missing": missing,
        "hardware": {"timer": timer},
        "commit": run.commit,
    }


def number(value) -> int:
    """What a case says of its work: a property, or a method of the cases that must grow a tree for it."""
    return value() if callable(value) else value


def dtype_name(case) -> str:
    return str(getattr(case, "dtype", torch.float32)).removeprefix("torch.")


def describe(case) -> str:
    """A case without its type: a tree by its name, anything else by the fields that differ from their defaults."""
    if isinstance(case, trees.Case):
        return trees.label(case)
    fields = {
        field.name: getattr(case, field.name)
        for field in dataclasses.fields(case)
        if field.name != "dtype" and getattr(case, field.name) != field.default
    }
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in fields.items())


def write(path: Path | None, run: Run, bystanders: Bystanders) -> None:
    """Writes the rows; others_share is the part of the machine that other processes took until now."""
    run.hardware["others_share"] = bystanders.share()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**row, "hardware": {**run.hardware, **row["hardware"]}} for row in run.rows]
        path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def show(run: Run, console: Console) -> None:
    """The rows as a table for each op; a peer's figure is how many times our time it takes."""
    facts = ", ".join(f"{name} {value}" for name, value in run.hardware.items())
    console.print(f"{facts}; commit {run.commit}", markup=False)
    for op in dict.fromkeys(row["op"] for row in run.rows):
        rows = [row for row in run.rows if row["op"] == op]
        names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
        table = Table(op, "type", "by", "µs", "GB/s", "of copy", "TFLOP/s", "plan µs", *(f"{n} ×" for n in names))
        for row in rows:
            plan = row["plan_seconds"]
            ratios = [f"{row['peers'][n] / row['seconds']:.2f}" if n in row["peers"] else "–" for n in names]
            table.add_row(
                row["case"],
                row["dtype"],
                row["impl"],
                f"{row['seconds'] * 1e6:,.1f}",
                f"{row['gbps']:,.1f}",
                f"{row['share_of_copy']:.0%}",
                f"{row['tflops']:.3f}",
                "–" if plan is None else f"{plan * 1e6:,.1f}",
                *ratios,
            )
        console.print(table)
        reasons = dict.fromkeys((name, why) for row in rows for name, why in row["peers_missing"].items())
        for name, why in reasons:
            console.print(f"{name} missing: {why}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
