"""Checks and times one case of an op with all its implementations and peers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.kernels import trees
from benchmarks.kernels.ops import Op
from benchmarks.kernels.peers import peers
from benchmarks.timing import Clock, Missing
from engine.results.provenance import Bystanders, commit, hardware, write_json

IMPLS = {"cpu": ("native",), "cuda": ("triton", "cuda")}


@dataclass
class Session:
    """What all rows have in common, and the rows and failures so far."""

    device: str
    clock: Clock
    copy_gbps: float
    hardware: dict[str, object]
    commit: str | None
    bystanders: Bystanders
    rows: list[dict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # red checks, ops that nothing computes
    refusals: dict[str, str] = field(default_factory=dict)  # by op and implementation, the first one's reason

    @classmethod
    def on(cls, device: str) -> Session:
        """Raises UserError where torch finds no such device."""
        facts, bystanders, clock = hardware(device), Bystanders(), Clock(device)
        copy_gbps = clock.copy_bandwidth() / 1e9
        return cls(device, clock, copy_gbps, facts | {"copy_gbps": copy_gbps}, commit(), bystanders)

    def measure(self, op: Op, case) -> None:
        """Adds the rows of a case: one for every implementation that takes it and is right."""
        inputs = op.inputs(case, self.device)
        label = f"{op.name} {describe(case)} {dtype_name(case)}"
        refused, is_red = [], False
        for impl in IMPLS[self.device]:
            try:
                op.check(case, impl, inputs)
            except ValueError as error:  # not offered, or not for such inputs
                self.refusals.setdefault(f"{op.name} {impl}", str(error))
                refused.append(f"{impl}: {error}")
            except Exception as error:  # a red check, or a kernel that breaks
                is_red = True
                self.failures.append(f"{label}, {impl}: {type(error).__name__}: {error}")
            else:
                self.rows.append(self.row(op, case, impl, inputs))
        if len(refused) == len(IMPLS[self.device]) and not is_red:
            self.failures.append(f"{label}: no implementation takes it on {self.device} ({'; '.join(refused)})")

    def row(self, op: Op, case, impl: str, inputs: dict) -> dict[str, object]:
        """One line of the table."""
        seconds, timer = self.clock.median(op.bind(case, impl, inputs))
        plan = op.plan(case)
        gbps = number(case.num_bytes) / seconds / 1e9
        times, missing = self.peer_times(op, case, impl, inputs)
        return {
            "op": op.name,
            "case": describe(case),
            "dtype": dtype_name(case),
            "impl": impl,
            "seconds": seconds,
            "gbps": gbps,
            "share_of_copy": gbps / self.copy_gbps,
            "tflops": number(case.flops) / seconds / 1e12,
            "plan_seconds": None if plan is None else Clock("cpu", max_seconds=0.02).median(plan)[0],
            "peers": times,
            "peers_missing": missing,
            "hardware": {"timer": timer},
            "commit": self.commit,
        }

    def peer_times(self, op: Op, case, impl: str, inputs: dict) -> tuple[dict[str, float], dict[str, str]]:
        """(seconds, reasons of those that cannot run), both by the peer's name."""
        times, missing = {}, {}
        for name, build in peers(op, case, self.device, inputs, impl):
            try:
                times[name] = self.clock.median(build())[0]
            except Missing as reason:
                missing[name] = str(reason)
            except Exception as error:  # somebody else's code: its failure is a reason as well
                missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        return times, missing

    def write(self, path: Path | None) -> None:
        """Writes the rows; others_share is the part of the machine that other processes took until now."""
        self.hardware["others_share"] = self.bystanders.share()
        write_json(path, [{**row, "hardware": {**self.hardware, **row["hardware"]}} for row in self.rows])


def number(value) -> int:
    """A case's count of work: a property, or a method of the cases that must grow a tree for it."""
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
