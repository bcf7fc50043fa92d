"""The decode table: one slot per branch being sampled, its state in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.runtime.requests import SampleJob

# Columns of one type share an array, so that they are gathered in one go.
_INTS = (  # int32
    "handle",
    "pending",  # last sampled token, not yet fed
    "position",  # of the token to be sampled next
    "top_k",
    "count",  # tokens sampled in this extension
    "max_count",
    "rule",  # stop rule
    "billed",  # tokens of this extension whose feeding is on the bill
)
_FLOATS = ("temperature", "top_p", "min_p")  # float32


@dataclass
class Active:
    """The n decoding rows side by side, so that a tick gathers nothing; lives until their set changes.

    The first `num_placed` are decoded; the others stand by until one of those ends.
    """

    num_placed: int
    slots: np.ndarray  # (n,) int64
    handles: np.ndarray  # (n,) int32
    ones: np.ndarray  # (n,) int32: tokens of each row in a forward
    indices: np.ndarray  # (n,) int64: 0 .. n - 1
    where: torch.Tensor  # the same memory
    rules: np.ndarray  # (n,) int32
    sampling: tuple[torch.Tensor, ...]  # the arguments of `sample` after the logits
    positions: np.ndarray  # (n,) int32, the memory of sampling[1]
    pending: np.ndarray  # (n,) int32
    at: np.ndarray  # (n,) int64: where the next token goes in the flat table
    left: np.ndarray  # (n,) int32: tokens that each row may still draw
    room: int  # tokens that the table surely holds of every row


@dataclass(frozen=True)
class Ready:
    """When decoding is to return: once so many rows have ended, those counted of whose group none goes on."""

    num_rows: int
    groups: np.ndarray  # (n,) int32, below n, one for each decoding row


class Rows:
    """`max_rows` at most are decoded, `num_standby` more may wait with a token drawn for one of them to end.

    Columns are arrays of as many slots; `tokens` and `logprobs` are (capacity, slots), so that what a tick writes
    lies together.

    While rows are `active`, what a tick changes (pending, position, count) is kept there and not in the
    columns; every other call writes it back first.
    """

    def __init__(self, max_rows: int, num_standby: int = 0):
        self.max_rows, self.num_slots = max_rows, max_rows + num_standby
        self._ints = np.zeros((len(_INTS), self.num_slots), np.int32)
        self._floats = np.zeros((len(_FLOATS), self.num_slots), np.float32)
        self.handle, self.pending, self.position, self.top_k, self.count, self.max_count, self.rule, self.billed = (
            self._ints
        )
        self.temperature, self.top_p, self.min_p = self._floats
        self.key = np.zeros(self.num_slots, np.int64)
        # Has a handle of its own and a pending token to feed; otherwise a row waits for its source's logits.
        self.is_decoding = np.zeros(self.num_slots, bool)
        self.tokens = np.zeros((64, self.num_slots), np.int32)
        self.logprobs = np.zeros((64, self.num_slots), np.float32)
        self.jobs: list[SampleJob | None] = [None] * self.num_slots
        self._free = list(range(self.num_slots))[::-1]
        # Slots: the first `max_rows` have places, in the order of the last plan as far as it is known.
        self._decoding = np.zeros(0, np.int64)
        self._active: Active | None = None

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    @property
    def num_decoding(self) -> int:
        return len(self._decoding)

    def decoding_jobs(self) -> list[SampleJob]:
        return [self.jobs[slot] for slot in self._decoding.tolist()]

    def add(self, jobs: Sequence[SampleJob]) -> None:
        """Takes a slot for each job, which then waits for its source's logits."""
        slots = [self._free.pop() for _ in jobs]
        samplings = [job.request.sampling for job in jobs]
        counts = [len(job.partial.tokens) if job.partial else 0 for job in jobs]
        self.key[slots] = [job.key for job in jobs]
        self.position[slots] = [job.source.end for job in jobs]
        for name in ("temperature", "top_k", "top_p", "min_p"):
            getattr(self, name)[slots] = [getattr(sampling, name) for sampling in samplings]
        self.count[slots] = self.billed[slots] = counts
        self.max_count[slots] = [job.max_tokens for job in jobs]
        self.rule[slots] = [job.request.stop_rule for job in jobs]
        for slot, job, count in zip(slots, jobs, counts, strict=True):
            self.jobs[slot], job.row = job, slot
            if count:
                self._reserve(count)
                self.tokens[:count, slot] = job.partial.tokens
                self.logprobs[:count, slot] = job.logprobs

    def start(self, slots: Sequence[int], handles: Sequence[int]) -> None:
        """Gives waiting rows their handles; they decode from now on."""
        self.settle()
        self.handle[slots] = handles
        self.is_decoding[slots] = True
        self._decoding = np.concatenate([self._decoding, np.array(slots, np.int64)])

    def remove(self, slots: Sequence[int]) -> None:
        """Gives slots back."""
        self.settle()
        for slot in slots:
            self.jobs[slot].row = -1
            self.jobs[slot] = None
        self._free += slots
        self.is_decoding[slots] = False
        self._decoding = self._decoding[self.is_decoding[self._decoding]]

    def active(self) -> Active:
        """The decoding rows. Raises AssertionError if there is none."""
        if self._active is None:
            self._active = self._gather()
        return self._active

    def reorder(self, order: np.ndarray) -> Active:
        """Puts the rows that have places into the order of a plan, which the next plan then keeps."""
        self.settle()
        self._decoding = np.concatenate([self._decoding[order], self._decoding[len(order) :]])
        return self.active()

    def _gather(self) -> Active:
        slots = self._decoding
        assert len(slots), "no row is decoding"
        counts = self.count[slots]
        highest = int(counts.max())
        self._reserve(highest + 1)
        indices = np.arange(len(slots))
        ints = dict(zip(_INTS, self._ints.take(slots, axis=1), strict=True))
        return Active(
            num_placed=min(self.max_rows, len(slots)),
            slots=slots,
            handles=ints["handle"],
            ones=np.ones(len(slots), np.int32),
            indices=indices,
            where=torch.from_numpy(indices),
            rules=ints["rule"],
            sampling=self._sampling(slots, ints),
            positions=ints["position"],
            pending=ints["pending"],
            at=counts * np.int64(self.num_slots) + slots,
            left=ints["max_count"] - counts,
            room=len(self.tokens) - highest,
        )

    def _sampling(self, slots: np.ndarray, ints: dict[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
        """How the next token of each row is drawn; the positions share memory with those in `ints`."""
        temperature, top_p, min_p = self._floats.take(slots, axis=1)
        columns = (self.key[slots], ints["position"], temperature, ints["top_k"], top_p, min_p)
        return tuple(map(torch.from_numpy, columns))

    def settle(self) -> None:
        """Writes what is kept in `active` back into the columns."""
        active, self._active = self._active, None
        if active is not None:
            self.pending[active.slots] = active.pending
            self.position[active.slots] = active.positions
            self.count[active.slots] = active.at // self.num_slots

    def push_active(self, tokens: np.ndarray, logprobs: np.ndarray, counts: np.ndarray) -> None:
        """Appends sampled tokens to the active rows: of each the first `counts[i]` of (steps, n), `room` at most;
        none to those that have stood by all the time."""
        active, num = self._active, len(tokens)
        at = active.at + self.num_slots * np.arange(num)[:, None]
        self.tokens.reshape(-1)[at] = tokens  # what lies behind a row's count means nothing
        self.logprobs.reshape(-1)[at] = logprobs
        active.pending = np.where(counts > 0, tokens[counts - 1, active.indices], active.pending)
        active.at += self.num_slots * counts
        active.positions += counts
        active.left -= counts
        active.room -= num

    def push(self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Appends one sampled token to each of the rows."""
        self.settle()
        counts = self.count[slots]
        self._reserve(int(counts.max(initial=0)) + 1)
        self.tokens[counts, slots] = tokens
        self.logprobs[counts, slots] = logprobs
        self.pending[slots] = tokens
        self.count[slots] = counts + 1
        self.position[slots] += 1

    def sampling(self, slots: np.ndarray) -> tuple[torch.Tensor, ...]:
        """How the next token of each row is drawn: the arguments of `sample` after the logits."""
        self.settle()
        return self._sampling(slots, dict(zip(_INTS, self._ints.take(slots, axis=1), strict=True)))

    def sampled(self, slots: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """Tokens of each row's extension so far, and their log-probabilities."""
        self.settle()
        counts = self.count[slots]
        ends = np.cumsum(counts)
        starts = ends - counts
        at = np.repeat(slots - starts * self.num_slots, counts) + self.num_slots * np.arange(ends[-1])
        tokens, logprobs = self.tokens.reshape(-1)[at].tolist(), self.logprobs.reshape(-1)[at].tolist()
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        return [(tokens[start:end], logprobs[start:end]) for start, end in pairs]

    def _reserve(self, capacity: int) -> None:
        while len(self.tokens) < capacity:
            self.tokens = np.concatenate([self.tokens, np.zeros_like(self.tokens)])
            self.logprobs = np.concatenate([self.logprobs, np.zeros_like(self.logprobs)])
