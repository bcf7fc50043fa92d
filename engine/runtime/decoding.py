"""The branches that are being generated: from a source segment's logits to finished extensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.accounting import ModelShape, forward_flops
from engine.runtime.decode_table import DecodeTable, ReturnRule
from engine.runtime.requests import GeneratedTokens, GenerateJob, Request
from engine.runtime.segments import SegmentStore
from engine.runtime.stops import StopRules
from engine.types import FINISHED

# Decoding returns once a sixth of its rows can be replaced. A tick costs more than fewer idle places do.
_RETURN_SHARE = 6


class Decoding:
    """The decode table with its stop rules. The job of each row grows its `partial` segment."""

    def __init__(self, store: SegmentStore, shape: ModelShape, table: DecodeTable, vocab_size: int):
        self.store, self.shape, self.table = store, shape, table
        self.stops = StopRules(vocab_size)

    def start(self, jobs: Sequence[GenerateJob]) -> None:
        """Gives every waiting row its branch of the tree: a fork of its source, or the one that was suspended."""
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
        self.table.start([job.row for job in jobs], [job.partial.handle for job in jobs])

    def return_rule(self, has_queue: bool) -> ReturnRule:
        """When forwards of the decoding rows are to return.

        A row that has ended is worth returning for if another branch can take its row (`has_queue`), if `confirm` may
        have it go on after all, or if it was the last of its request. Rows that stand by fill free places first.
        """
        jobs = self.table.decoding_jobs()
        waiting = [job if has_queue or job.request.stop.confirm else job.request for job in jobs]
        ids: dict[GenerateJob | Request, int] = {}
        groups = np.array([ids.setdefault(each, len(ids)) for each in waiting], np.int32)
        num_placed = min(len(jobs), self.table.batch_size)
        return ReturnRule(max(1, num_placed // _RETURN_SHARE) + len(jobs) - num_placed, groups)

    def push_active(self, tokens: np.ndarray, logprobs: np.ndarray, counts: np.ndarray) -> None:
        """Appends sampled tokens to all active rows and finishes those that have ended.

        `tokens` and `logprobs` are (forwards, n). Row i takes the first `counts[i]`, of which only the last may end it.
        """
        table = self.table
        active = table.active()
        table.push_active(tokens, logprobs, counts)
        # A row without new tokens has stood by all the time: its last token was looked at when it was drawn.
        is_end = self.stops.ends(active.rules, active.pending) & (counts > 0)
        if active.room > 0 and not np.count_nonzero(is_end | (active.left <= 0)):
            return
        table.settle()
        self._finish_ended(active.rows, active.pending, is_end)

    def push(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Appends one sampled token to each of the rows and finishes those that have ended."""
        self.table.push(rows, tokens, logprobs)
        self._finish_ended(rows, tokens, self.stops.ends(self.table.rule[rows], tokens))

    def _finish_ended(self, rows: np.ndarray, tokens: np.ndarray, is_end: np.ndarray) -> None:
        table = self.table
        which = np.flatnonzero(is_end | (table.count[rows] >= table.max_count[rows]))
        if len(which):
            reasons = [(rows[i].item(), self._finish_reason(rows[i].item(), tokens[i], is_end[i])) for i in which]
            ended = {row: reason for row, reason in reasons if reason is not None}
            if ended:
                self._finish(list(ended), list(ended.values()))

    def _finish_reason(self, row: int, token: int, is_end: bool) -> str | None:
        """How a row finishes with its last token; None if it goes on after all."""
        reason = self.stops.finish(token, is_end)
        job = self.table.jobs[row]
        confirm = job.request.stop.confirm
        if reason != "step" or confirm is None:
            return reason
        ((tokens, _),) = self.table.generated([row])
        is_full = len(tokens) >= job.max_tokens
        return confirm(job.branch, tokens) or ("length" if is_full else None)

    def _finish(self, rows: list[int], reasons: Sequence[str]) -> None:
        """Hands finished extensions to their requests; each branch now ends with the new segment."""
        table, store = self.table, self.store
        self._bill(rows)
        generated = table.generated(rows)
        jobs = [table.jobs[row] for row in rows]
        table.remove(rows)
        for job, (tokens, logprobs), reason in zip(jobs, generated, reasons, strict=True):
            segment, branch, request = job.partial, job.branch, job.request
            segment.set_computed(len(tokens) - 1)
            if reason == "error":
                del tokens[-1], logprobs[-1]
            segment.ledger.add(segment.purpose, len(tokens))
            segment.tokens, segment.is_finished = tokens, reason in (*FINISHED, "error")
            if tokens:
                store.release(branch.segment)
                branch.segment = segment
            else:  # the first token failed: the branch stays as it was
                store.release(segment)
            branch.job = None
            result = GeneratedTokens(tuple(tokens), tuple(logprobs), reason, job.trunk_scores)
            request.results[job.index] = result
            request.num_left -= 1

    def suspend(self, job: GenerateJob) -> None:
        """Gives up a decoding row's KV; its job is to be queued again, and its KV computed again."""
        segment = job.partial
        self._bill([job.row])
        ((segment.tokens, job.logprobs),) = self.table.generated([job.row])
        segment.set_computed(len(segment.tokens) - 1)
        job.source = segment
        self.store.drop(segment)
        self.table.remove([job.row])

    def _bill(self, rows: list[int]) -> None:
        """Bills the FLOPs of the tokens that these extensions have computed since they were last billed."""
        table = self.table
        table.settle()
        computed = table.count[rows] - 1
        for row, until, since in zip(rows, computed.tolist(), table.billed[rows].tolist(), strict=True):
            if until > since:
                segment = table.jobs[row].partial
                segment.ledger.add(segment.purpose, 0, forward_flops(self.shape, segment.start + since, until - since))
        table.billed[rows] = np.maximum(table.billed[rows], computed)
