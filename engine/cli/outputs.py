"""Where the rows of a run go, and which of them it makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from engine.cli.options import Given
from engine.errors import UserError
from engine.results import Row, Shard, is_error_row


@dataclass(frozen=True)
class RunOutput:
    """Of a command that makes a row for every problem."""

    out: str = "results.jsonl"
    """Results, one JSON row per problem."""

    overwrite: bool = field(default=False, metadata={"flags": "--overwrite"})
    """Drop what --out holds."""

    shard: str | None = None
    """i/n: make every n-th row alone, from the i-th on, for `ttc merge`; --out is then results.i-of-n.jsonl."""

    on_error: str = "stop"
    """What becomes of the run where a problem fails: stop, or row, which writes the error in the place of a result."""

    retry_errors: bool = field(default=False, metadata={"flags": "--retry-errors"})
    """Try the problems again that failed in an earlier run."""

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "row"):
            raise UserError(f"on_error must be stop or row, got {self.on_error!r}")
        _ = self.part

    @property
    def part(self) -> Shard | None:
        """The shard; None for a whole run."""
        return None if self.shard is None else Shard.parse(self.shard)

    @property
    def keeps_errors(self) -> bool:
        """Whether an error becomes a row."""
        return self.on_error == "row"

    def placed(self, given: Given) -> RunOutput:
        """With a name of its own for a shard's file where the user named none."""
        return self if self.part is None or "out" in given else replace(self, out=self.part.path(self.out))

    def refuse_shard(self, option: str, why: str) -> None:
        """Raises UserError for a shard beside an option whose effect on a row depends on all others."""
        if self.shard is not None:
            raise UserError(f"{option} cannot be divided into shards, {why}, got --shard {self.shard}")

    def positions(self, num_total: int) -> range:
        """Those of the rows that the run makes."""
        return range(num_total) if self.part is None else self.part.positions(num_total)

    def is_done(self, row: Row | None) -> bool:
        """Whether what an earlier run has made of a problem stands."""
        return row is not None and not (self.retry_errors and is_error_row(row))


def failures(rows: dict[int, Row]) -> str:
    """How many problems failed, and why the first of them; nothing where none did."""
    failed = [row for _, row in sorted(rows.items()) if is_error_row(row)]
    if not failed:
        return ""
    return f"{len(failed)} failed (problem {failed[0]['id']}: {failed[0]['error']}; --retry-errors tries again)"


def left_out(num_errors: int) -> str:
    """What a command says of the error rows among results."""
    return f"{num_errors} rows with an error in the place of a result are left out"


def uncounted(rows: Iterable[Row]) -> str:
    """The entries of the rows' ledgers that an endpoint has not counted; nothing where it has counted all."""
    names = sorted({name for row in rows for name in row.get("estimated", ())})
    return f"not counted by the endpoint, so estimated or 0: {' '.join(names)}" if names else ""
