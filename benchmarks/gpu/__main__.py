"""One of the two calls of benchmarks/gpu.sh: all of its checks in one process, each of which reports as it ends.

    python -m benchmarks.gpu --call 1 --out benchmarks/results/gpu

It writes `call-1.json` anew after every check: the machine, the commit, and of every check `name, state` ("passed",
"failed" or "not begun"), `reason`, `seconds`, `estimate` and `figures`. A check is not begun where less time is left
than it may take. Where one has lost the device (an error that CUDA keeps), the call goes on in a new process.
`--rehearse` does all this on a CPU with small inputs, and charges every check its estimate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.checks import CALLS, Bench, Check
from engine.commands import run_command
from engine.errors import UserError
from engine.results.provenance import provenance, write_json

Row = dict[str, object]


class Spent:
    """Seconds of a call: those that have gone by since `start`, or in a rehearsal those that were charged."""

    def __init__(self, start: float | None):
        self.start, self.charged = start, 0.0

    @property
    def seconds(self) -> float:
        return self.charged if self.start is None else time.time() - self.start


def run_checks(
    checks: Sequence[Check],
    limit: float,
    spent: Spent,
    bench: Bench,
    report: Row,
    write: Callable[[Row], None],
) -> bool:
    """Runs the checks that the report does not have yet; False where one has lost the device, and the rest remain."""
    rows: list[Row] = report["checks"]
    for check in checks[len(rows) :]:
        rows.append(row := outcome(check, limit - spent.seconds, bench))
        if row["state"] != "not begun":
            spent.charged += check.seconds
        print(f"{check.name}: {row['state']} {row['reason']} ({row['seconds']:.0f} s)", flush=True)
        write(report)
        if row["state"] == "failed" and not device_answers(bench.device):
            return False
    return True


def outcome(check: Check, seconds_left: float, bench: Bench) -> Row:
    """The row of a check."""
    row = {"name": check.name, "state": "not begun", "reason": "", "seconds": 0.0, "estimate": check.seconds}
    if seconds_left < check.seconds:
        return row | {"reason": f"{seconds_left:.0f} s were left, it may take {check.seconds:.0f}", "figures": {}}
    start = time.perf_counter()
    try:
        figures, state, reason = check.run(bench), "passed", ""
    except Exception as error:  # whatever it is, the others go on
        figures, state, reason = {}, "failed", f"{type(error).__name__}: {error}"[:2000]
        if not isinstance(error, AssertionError | UserError):
            figures = {"traceback": traceback.format_exc()[-3000:]}
    return row | {"state": state, "reason": reason, "seconds": time.perf_counter() - start, "figures": figures}


def device_answers(device: str) -> bool:
    """Whether a GPU still takes work: after an illegal access no later call of the process succeeds."""
    if device == "cpu":
        return True
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a check failed or was not begun."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--call", type=int, choices=CALLS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU")
    parser.add_argument("--begun", type=float, help="when the call began, if that is earlier (Unix time)")
    parser.add_argument("--go-on", action="store_true", help="after the checks that the report has")
    args = parser.parse_args(arguments)
    return run_command(partial(run, args))


def run(args: argparse.Namespace) -> int:
    limit, checks = CALLS[args.call]
    device, path = "cpu" if args.rehearse else "cuda", args.out.resolve() / f"call-{args.call}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    start = args.begun or time.time()
    report = json.loads(path.read_text()) if args.go_on else provenance(device) | {"call": args.call, "checks": []}
    spent = Spent(None if args.rehearse else start)
    bench = Bench(device, path.parent)  # a rehearsal may be on a busy machine
    if not args.rehearse:
        bench.seconds_left = lambda: max(1.0, limit - spent.seconds)
    if not run_checks(checks, limit, spent, bench, report, partial(write_json, path)):
        print("the device is lost: the others run in a new process", flush=True)
        options = ["--call", str(args.call), "--out", str(args.out), "--begun", str(start), "--go-on"]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *options])
    return 0 if all(row["state"] == "passed" for row in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
