"""The branches that are being sampled: from a source segment's logits to finished extensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.accounting import ModelShape, forward_flops
from engine.runtime.decode_table import Ready, Rows
from engine.runtime.requests import Request, Sampled, SampleJob
from engine.runtime.segments import SegmentStore
from engine.runtime.stops import StopRules
from engine.types import FINISHED

# Decoding returns once one in so many of its rows is missed: for fewer, a tick would cost more than idle places do.
_READY_SHARE = 6


class Decoding:
    """The decode table with its stop rules. A row's job makes its `partial` segment."""

    def __init__(self, store: SegmentStore, shape: ModelShape, max_rows: int, num_standby: int, vocab_size: int):
        self.store, self.shape = store, shape
        self.rows = Rows(max_rows, num_standby)
        self.stops = StopRules(vocab_size)

    def start(self, jobs: Sequence[SampleJob]) -> None:
        """Gives every waiting row a branch of the tree: a fork of its source, or its own half-made one."""
        fresh = [job for job in jobs if job.partial is None]
        for job in fresh:
            job.partial = self.store.new(
                job.source,
                [],
                ledger=job.branch.ledger,
                purpose=job.request.purpose,
                is_counted=True,
                priority=job.priority,
                age=job.age,
            )
        self.store.fork_all([job.partial for job in fresh])
        self.rows.start([job.row for job in jobs], [job.partial.handle for job in jobs])

    def ready(self, is_any_missed: bool) -> Ready:
        """When forwards of the decoding rows are to return.

        `is_any_missed`: other branches wait for their places. Else they are missed when their request has ended whole,
        or where they may have to go on after all. Those that stand by fill as many places first.
        """
        jobs = self.rows.decoding_jobs()
        waiting = [job if is_any_missed or job.request.confirm else job.request for job in jobs]
        ids: dict[SampleJob | Request, int] = {}
        groups = np.array([ids.setdefault(each, len(ids)) for each in waiting], np.int32)
        num_placed = min(len(jobs), self.rows.max_rows)
        return Ready(max(1, num_placed // _READY_SHARE) + len(jobs) - num_placed, groups)

    def push_active(self, tokens: np.ndarray, logprobs: np.ndarray, counts: np.ndarray) -> None:
        """Sampled tokens of all active rows, `counts[i]` of (steps, n); only a row's last may end it."""
        rows = self.rows
        active = rows.active()
        rows.push_active(tokens, logprobs, counts)
        # What stood by all the time has been asked about its last token before.
        is_end = self.stops.ends(active.rules, active.pending) & (counts > 0)
        if active.room > 0 and not np.count_nonzero(is_end | (active.left <= 0)):
            return
        rows.settle()
        self._finish_ended(active.slots, active.pending, is_end)

    def push(self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """One sampled token for each of the slots; finishes what it completes."""
        self.rows.push(slots, tokens, logprobs)
        self._finish_ended(slots, tokens, self.stops.ends(self.rows.rule[slots], tokens))

    def _finish_ended(self, slots: np.ndarray, tokens: np.ndarray, is_end: np.ndarray) -> None:
        rows = self.rows
        which = np.flatnonzero(is_end | (rows.count[slots] >= rows.max_count[slots]))
        if len(which):
            ends = [(slots[i].item(), self._how(slots[i].item(), tokens[i], is_end[i])) for i in which]
            ends = [(slot, how) for slot, how in ends if how is not None]
            if ends:
                self._finish([slot for slot, _ in ends], [how for _, how in ends])

    def _how(self, slot: int, token: int, is_end: bool) -> str | None:
        """How a row finishes with its last token; None where it goes on after all."""
        how = self.stops.finish(token, is_end)
        job = self.rows.jobs[slot]
        if how != "step" or job.request.confirm is None:
            return how
        ((drawn, _),) = self.rows.sampled([slot])
        is_full = len(drawn) >= job.max_tokens
        return job.request.confirm(job.branch, drawn) or ("length" if is_full else None)

    def _finish(self, slots: list[int], finish: Sequence[str]) -> None:
        """Hands finished extensions to their requests; the branches now stand at the new segments."""
        rows, store = self.rows, self.store
        self._bill(slots)
        sampled = rows.sampled(slots)
        jobs = [rows.jobs[slot] for slot in slots]
        rows.remove(slots)
        for job, (tokens, logprobs), how in zip(jobs, sampled, finish, strict=True):
            segment, branch, request = job.partial, job.branch, job.request
            segment.set_fed(len(tokens) - 1)
            if how == "error":
                del tokens[-1], logprobs[-1]
            segment.ledger.add(segment.purpose, len(tokens))
            segment.tokens, segment.is_finished = tokens, how in (*FINISHED, "error")
            if tokens:
                store.release(branch.segment)
                branch.segment = segment
            else:  # the first token failed: the branch stays where it stood
                store.release(segment)
            branch.job = None
            request.results[job.index] = Sampled(tuple(tokens), tuple(logprobs), how, tuple(job.trunk_scores))
            request.num_left -= 1

    def suspend(self, job: SampleJob) -> None:
        """Gives up a decoding row's KV; its job is to be queued again and re-computed."""
        segment = job.partial
        self._bill([job.row])
        ((segment.tokens, job.logprobs),) = self.rows.sampled([job.row])
        segment.set_fed(len(segment.tokens) - 1)
        job.source = segment
        self.store.drop(segment)
        self.rows.remove([job.row])

    def _bill(self, slots: list[int]) -> None:
        """FLOPs of the tokens that these extensions have fed since they were last billed."""
        rows = self.rows
        rows.settle()
        fed = rows.count[slots] - 1
        for slot, until, since in zip(slots, fed.tolist(), rows.billed[slots].tolist(), strict=True):
            if until > since:
                segment = rows.jobs[slot].partial
                segment.ledger.add(segment.purpose, 0, forward_flops(self.shape, segment.start + since, until - since))
        rows.billed[slots] = np.maximum(rows.billed[slots], fed)
