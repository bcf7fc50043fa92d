"""The rows of a session as a table for each op."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.kernels.measure import Session

COLUMNS = ("type", "by", "µs", "GB/s", "of copy", "TFLOP/s", "plan µs")


def show(session: Session, console: Console) -> None:
    """Prints the tables; a peer's figure is how many times our time it takes."""
    facts = ", ".join(f"{name} {value}" for name, value in session.hardware.items())
    console.print(f"{facts}; commit {session.commit}", markup=False)
    for op in dict.fromkeys(row["op"] for row in session.rows):
        rows = [row for row in session.rows if row["op"] == op]
        console.print(table(op, rows))
        reasons = dict.fromkeys((name, why) for row in rows for name, why in row["peers_missing"].items())
        for name, why in reasons:
            console.print(f"{name} missing: {why}", markup=False)


def table(op: str, rows: Sequence[dict]) -> Table:
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    made = Table(op, *COLUMNS, *(f"{peer} ×" for peer in peers))
    for row in rows:
        ratios = [f"{row['peers'][each] / row['seconds']:.2f}" if each in row["peers"] else "–" for each in peers]
        made.add_row(*cells(row), *ratios)
    return made


def cells(row: dict) -> tuple[str, ...]:
    plan = row["plan_seconds"]
    return (
        row["case"],
        row["dtype"],
        row["impl"],
        f"{row['seconds'] * 1e6:,.1f}",
        f"{row['gbps']:,.1f}",
        f"{row['share_of_copy']:.0%}",
        f"{row['tflops']:.3f}",
        "–" if plan is None else f"{plan * 1e6:,.1f}",
    )
