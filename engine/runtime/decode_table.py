"""The decode table: one row per branch that is being generated, its state in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.runtime.requests import GenerateJob

# Stands for a drawn token until it has been read. No prompt has it, so none is found in the KV tree by it.
UNKNOWN = -1
# Columns of one type share an array, so that they are gathered in one go.
_INTS = (  # int32
    "handle",  # in the KV tree
    "pending",  # last sampled token, not yet in the KV tree; UNKNOWN while a launch draws it
    "position",  # of the token to be sampled next
    "top_k",
    "count",  # tokens sampled in this extension
    "max_count",
    "rule",  # stop rule
    "billed",  # tokens of this extension whose forward passes are on the bill
    "chain",  # row of the last launch that draws the pending token, which is not known yet; -1: it is known
)
_FLOATS = ("temperature", "top_p", "min_p")  # float32


@dataclass
class ActiveRows:
    """The n decoding rows gathered side by side, for as long as it stays the same n.

    The first `num_placed` are decoded in the next forward; the others stand by until one of those ends.
    """

    num_placed: int
    rows: np.ndarray  # (n,) int64: row numbers in the table
    handles: np.ndarray  # (n,) int32
    ones: np.ndarray  # (n,) int32: tokens of each row in a forward
    indices: np.ndarray  # (n,) int64: 0 .. n - 1
    rules: np.ndarray  # (n,) int32
    sampling: tuple[np.ndarray, ...]  # (n,) each: the arguments of `sample` after the logits
    is_filtered: bool  # whether any row has top-k, top-p or min-p
    positions: np.ndarray  # (n,) int32, in the same memory as sampling[1]
    pending: np.ndarray  # (n,) int32
    chain: np.ndarray  # (n,) int32
    at: np.ndarray  # (n,) int64: where the next token goes in the flattened table of tokens
    left: np.ndarray  # (n,) int32: tokens that each row may still draw
    room: int  # tokens that the table can hold for every row before it must grow


@dataclass(frozen=True)
class ReturnRule:
    """When decoding returns to the runner: once `num_rows` rows have ended whose whole group has ended."""

    num_rows: int
    groups: np.ndarray  # (n,) int32: the group of each decoding row, numbered from 0


class DecodeTable:
    """State of the branches that are being generated.

    `batch_size` of them are decoded in one forward at most. `num_standby` more may have their first token drawn and
    then wait to take the place of one that ends.

    Columns have `num_rows` entries. `tokens` and `logprobs` are (capacity, num_rows), so that what a tick writes lies
    together. While there is an `active` gathering, pending tokens, positions and counts are kept there and are stale
    in the columns; every other method writes them back first.

    Tokens are appended in one go by `push_active`, or in two: `launch` counts a token that a forward draws, and
    `write` names it, perhaps only after a later launch has taken the row on.
    """

    def __init__(self, batch_size: int, num_standby: int = 0):
        self.batch_size, self.num_rows = batch_size, batch_size + num_standby
        self._ints = np.zeros((len(_INTS), self.num_rows), np.int32)
        self._floats = np.zeros((len(_FLOATS), self.num_rows), np.float32)
        (
            self.handle,
            self.pending,
            self.position,
            self.top_k,
            self.count,
            self.max_count,
            self.rule,
            self.billed,
            self.chain,
        ) = self._ints
        self.temperature, self.top_p, self.min_p = self._floats
        self.key = np.zeros(self.num_rows, np.int64)
        self._is_filtered = np.zeros(self.num_rows, bool)
        # True: the row has a handle of its own and a pending token. False: it waits for its source's logits.
        self.is_decoding = np.zeros(self.num_rows, bool)
        self.tokens = np.zeros((64, self.num_rows), np.int32)
        self.logprobs = np.zeros((64, self.num_rows), np.float32)
        self.epoch = np.zeros(self.num_rows, np.int32)  # jobs that each row has had; a launch notes which it drew for
        self.jobs: list[GenerateJob | None] = [None] * self.num_rows
        self._free = list(range(self.num_rows))[::-1]
        # Row numbers: the first `batch_size` are decoded, in the order of the last plan as far as it is known.
        self._decoding = np.zeros(0, np.int64)
        self._active: ActiveRows | None = None

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_rows - len(self._free)

    @property
    def num_decoding(self) -> int:
        return len(self._decoding)

    def decoding_jobs(self) -> list[GenerateJob]:
        return [self.jobs[row] for row in self._decoding.tolist()]

    def add(self, jobs: Sequence[GenerateJob]) -> None:
        """Gives each job a row, which then waits for its source's logits."""
        rows = self._free[: -len(jobs) - 1 : -1]
        samplings = [job.request.sampling for job in jobs]
        counts = [len(job.partial.tokens) if job.partial else 0 for job in jobs]
        self.key[rows] = [job.key for job in jobs]
        self.position[rows] = [job.source.end for job in jobs]
        for name in ("temperature", "top_k", "top_p", "min_p"):
            getattr(self, name)[rows] = [getattr(sampling, name) for sampling in samplings]
        self._is_filtered[rows] = [each.top_k > 0 or each.top_p < 1 or each.min_p > 0 for each in samplings]
        self.count[rows] = self.billed[rows] = counts
        self.chain[rows] = -1
        self.max_count[rows] = [job.max_tokens for job in jobs]
        self.rule[rows] = [job.request.stop.rule for job in jobs]
        del self._free[len(self._free) - len(rows) :]
        for row, job, count in zip(rows, jobs, counts, strict=True):
            self.jobs[row], job.row = job, row
            if count:
                self._reserve(count)
                self.tokens[:count, row] = job.partial.tokens
                self.logprobs[:count, row] = job.logprobs

    def start(self, rows: Sequence[int], handles: Sequence[int]) -> None:
        """Gives waiting rows their handles; they decode from now on."""
        self.settle()
        self.handle[rows] = handles
        self.is_decoding[rows] = True
        self._decoding = np.concatenate([self._decoding, np.array(rows, np.int64)])

    def remove(self, rows: Sequence[int]) -> None:
        """Takes jobs out of the table; their rows are free again."""
        self.settle()
        for row in rows:
            self.jobs[row].row = -1
            self.jobs[row] = None
        self.epoch[rows] += 1
        self._free += rows
        self.is_decoding[rows] = False
        self._decoding = self._decoding[self.is_decoding[self._decoding]]

    def active(self) -> ActiveRows:
        """The decoding rows that have a token left to draw. Raises AssertionError if there is none."""
        if self._active is None:
            self._active = self._gather()
        return self._active

    @property
    def has_active(self) -> bool:
        """Whether a decoding row has a token left to draw; the others wait for the last one, which a forward draws."""
        rows = self._decoding
        return self._active is not None or bool(np.any(self.count[rows] < self.max_count[rows]))

    def reorder(self, order: np.ndarray) -> ActiveRows:
        """Puts the active rows that are decoded into the order of a plan, which the next plan then keeps."""
        rows = self.active().rows
        self.settle()
        is_full = self.count[self._decoding] >= self.max_count[self._decoding]
        self._decoding = np.concatenate([rows[order], rows[len(order) :], self._decoding[is_full]])
        return self.active()

    def _gather(self) -> ActiveRows:
        rows = self._decoding
        is_full = self.count[rows] >= self.max_count[rows]
        if is_full.any():
            rows = rows[~is_full]
        assert len(rows), "no row is decoding"
        counts = self.count[rows]
        highest = int(counts.max())
        self._reserve(highest + 1)
        indices = np.arange(len(rows))
        ints = dict(zip(_INTS, self._ints.take(rows, axis=1), strict=True))
        return ActiveRows(
            num_placed=min(self.batch_size, len(rows)),
            rows=rows,
            handles=ints["handle"],
            ones=np.ones(len(rows), np.int32),
            indices=indices,
            rules=ints["rule"],
            sampling=self._sampling(rows, ints),
            is_filtered=self.has_filter(rows),
            positions=ints["position"],
            pending=ints["pending"],
            chain=ints["chain"],
            at=counts * np.int64(self.num_rows) + rows,
            left=ints["max_count"] - counts,
            room=len(self.tokens) - highest,
        )

    def _sampling(self, rows: np.ndarray, ints: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """How the next token of each row is drawn; the positions share memory with those in `ints`."""
        temperature, top_p, min_p = self._floats.take(rows, axis=1)
        return self.key[rows], ints["position"], temperature, ints["top_k"], top_p, min_p

    def settle(self) -> None:
        """Writes what is kept in `active` back into the columns."""
        active, self._active = self._active, None
        if active is not None:
            self.pending[active.rows] = active.pending
            self.chain[active.rows] = active.chain
            self.position[active.rows] = active.positions
            self.count[active.rows] = active.at // self.num_rows

    def push_active(self, tokens: np.ndarray, logprobs: np.ndarray, counts: np.ndarray) -> None:
        """Appends sampled tokens to the active rows.

        `tokens` and `logprobs` are (forwards, n), at most `room` forwards. Row i takes the first `counts[i]` of its
        column; a row that stood by all the time takes none.
        """
        active, num = self._active, len(tokens)
        at = active.at + self.num_rows * np.arange(num)[:, None]
        self.tokens.reshape(-1)[at] = tokens  # entries past a row's count mean nothing
        self.logprobs.reshape(-1)[at] = logprobs
        active.pending = np.where(counts > 0, tokens[counts - 1, active.indices], active.pending)
        active.at += self.num_rows * counts
        active.positions += counts
        active.left -= counts
        active.room -= num

    def launch_active(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts a token of each active row that a forward now draws, row i its i-th; returns what `launch` does."""
        active = self._active
        at = active.at.copy()
        active.pending[:] = UNKNOWN
        active.chain[:] = active.indices
        active.at += self.num_rows
        active.positions += 1
        active.left -= 1
        active.room -= 1
        is_last = active.left == 0
        if active.room == 0 or is_last.any():
            self.settle()
        return at, is_last

    def launch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts a token of each of the rows that a forward now draws, for `rows[i]` its i-th.

        Returns where the tokens go in the flattened table, for `write`, and which rows have no more left to draw: (n,)
        int64 and bool.
        """
        self.settle()
        counts = self.count[rows]
        self._reserve(int(counts.max(initial=0)) + 1)
        self.count[rows] = counts + 1
        self.position[rows] += 1
        self.pending[rows] = UNKNOWN
        self.chain[rows] = np.arange(len(rows))
        return counts * np.int64(self.num_rows) + rows, counts + 1 >= self.max_count[rows]

    def write(self, at: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Names what was drawn for launched tokens, (n,) each."""
        self.tokens.reshape(-1)[at] = tokens
        self.logprobs.reshape(-1)[at] = logprobs

    def know(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Sets the pending tokens of rows that no launch has taken on since they were drawn."""
        self.settle()
        self.pending[rows] = tokens
        self.chain[rows] = -1

    def has_filter(self, rows: np.ndarray) -> bool:
        """Whether any of the rows has top-k, top-p or min-p."""
        return bool(self._is_filtered[rows].any())

    def sampling(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """How the next token of each row is drawn: the arguments of `sample` after the logits."""
        self.settle()
        return self._sampling(rows, dict(zip(_INTS, self._ints.take(rows, axis=1), strict=True)))

    def generated(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """The tokens of each row's extension until now, and their log-probabilities."""
        self.settle()
        counts = self.count[rows]
        ends = np.cumsum(counts)
        starts = ends - counts
        at = np.repeat(rows - starts * self.num_rows, counts) + self.num_rows * np.arange(ends[-1])
        tokens, logprobs = self.tokens.reshape(-1)[at].tolist(), self.logprobs.reshape(-1)[at].tolist()
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        return [(tokens[start:end], logprobs[start:end]) for start, end in pairs]

    def _reserve(self, capacity: int) -> None:
        while len(self.tokens) < capacity:
            self.tokens = np.concatenate([self.tokens, np.zeros_like(self.tokens)])
            self.logprobs = np.concatenate([self.logprobs, np.zeros_like(self.logprobs)])
