"""The branches that are being generated: from a source segment's logits to finished extensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.accounting import ModelShape, forward_flops
from engine.runtime.decode_table import DecodeTable, ReturnRule
from engine.runtime.executors.base import Drawn
from engine.runtime.requests import GeneratedTokens, GenerateJob, Request
from engine.runtime.segments import SegmentStore
from engine.runtime.stops import StopRules
from engine.types import FINISHED

# Decoding returns once a sixth of its rows can be replaced. A tick costs more than fewer idle places do.
_RETURN_SHARE = 6


@dataclass(frozen=True)
class Launch:
    """Rows of the decode table for which a forward draws a token each."""

    rows: np.ndarray  # (n,) int64
    epochs: np.ndarray  # (n,) int32: of the table, to tell whether a row still has the same job
    at: np.ndarray  # (n,) int64: where the tokens go in the table
    is_last: np.ndarray  # (n,) bool: whether the row has no more to draw


class Decoding:
    """The decode table with its stop rules. The job of each row grows its `partial` segment."""

    def __init__(self, store: SegmentStore, shape: ModelShape, table: DecodeTable, vocab_size: int):
        self.store, self.shape, self.table = store, shape, table
        self.stops = StopRules(vocab_size)
        self.num_ended = 0  # jobs until now

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

    def push_active(self, drawn: Drawn) -> None:
        """Appends the tokens that all active rows have drawn, keeps their scores and finishes the rows that have ended.

        Of a row's tokens only the last may end it.
        """
        table, counts = self.table, drawn.counts
        active = table.active()
        self._keep_scores(active.at, drawn)
        table.push_active(drawn.tokens, drawn.logprobs, counts)
        # A row without new tokens has stood by all the time: its last token was looked at when it was drawn.
        may_end = self.stops.ends(active.rules, active.pending) & (counts > 0) | (active.left <= 0)
        if active.room > 0 and not np.count_nonzero(may_end):
            return
        table.settle()
        ended = self._ended(active.rows, active.pending, may_end)
        if ended:
            self._finish({active.rows[i].item(): reason for i, reason in ended.items()})

    def launch(self, rows: np.ndarray | None) -> Launch:
        """Counts a token that a forward now draws for each of these rows of the table; None: for the active ones."""
        table = self.table
        if rows is None:
            rows = table.active().rows
            return Launch(rows, table.epoch[rows], *table.launch_active())
        return Launch(rows, table.epoch[rows], *table.launch(rows))

    def land(self, launch: Launch, drawn: Drawn, is_newest: bool) -> None:
        """Names the tokens of a launch, keeps what the trunk head has read, and finishes the rows that have ended.

        Unless it `is_newest`, another launch has taken on since every row that had a token left to draw: its forward
        read tokens that were not known to the tree yet, which are written there now, and are taken back where the row
        has ended.
        """
        table, rows, at, is_last = self.table, launch.rows, launch.at, launch.is_last
        tokens, logprobs = drawn.tokens[0], drawn.logprobs[0]
        is_valid = table.epoch[rows] == launch.epochs  # the others' jobs were taken out since
        self._keep_scores(at, drawn, is_valid)
        if not is_valid.all():
            columns = rows, at, is_last, tokens, logprobs
            rows, at, is_last, tokens, logprobs = (column[is_valid] for column in columns)
        table.write(at, tokens, logprobs)
        if is_newest:
            table.know(rows, tokens)
        is_ahead = np.zeros(len(rows), bool) if is_newest else ~is_last
        is_end = self.stops.ends(table.rule[rows], tokens) | is_last
        ended: dict[int, str] = {}
        if np.count_nonzero(is_end):
            table.settle()
            table.count[rows] -= is_ahead
            ended = self._ended(rows, tokens, is_end)
            is_end[:] = False
            is_end[list(ended)] = True
            table.count[rows] += is_ahead & ~is_end
        if not is_newest:
            self._write_tree(rows, tokens, is_ahead, is_end)
        if ended:
            self._finish({rows[i].item(): reason for i, reason in ended.items()})

    def _write_tree(self, rows: np.ndarray, tokens: np.ndarray, is_ahead: np.ndarray, is_ended: np.ndarray) -> None:
        """Names the last token of rows that a later launch has taken on, or takes it back where the row has ended."""
        if is_ended.any():
            is_first = is_ahead & is_ended & (self.table.count[rows] == 1)
            for row in rows[is_first].tolist():  # nothing of the extension would stay
                self.store.drop(self.table.jobs[row].partial)
            is_ahead = is_ahead & ~is_first
        if is_ahead.all():
            handles, is_dropped, named = self.table.handle[rows], is_ended, tokens
        else:
            handles, is_dropped, named = self.table.handle[rows[is_ahead]], is_ended[is_ahead], tokens[is_ahead]
        if len(handles):
            dropped, is_named = is_dropped.astype(np.int32), ~is_dropped
            self.store.tree.rewrite(handles, dropped, is_named.astype(np.int32), named[is_named])

    def _keep_scores(self, at: np.ndarray, drawn: Drawn, is_valid: np.ndarray | None = None) -> None:
        """Adds what the trunk head has read to the jobs of the rows, whose first new tokens are `at` in the table."""
        which, index = drawn.scored
        for i, j, score in zip(which.tolist(), index.tolist(), drawn.scores, strict=True):
            if is_valid is None or is_valid[i]:
                count, row = divmod(at[i].item(), self.table.num_rows)
                self.table.jobs[row].trunk_scores[count + j] = score

    def _ended(self, rows: np.ndarray, tokens: np.ndarray, may_end: np.ndarray) -> dict[int, str]:
        """By index in `rows`, those that end with these tokens, their last ones, and how.

        `may_end` is (n,) bool: whether a row has met a token of its rule, or has no more to draw.
        """
        which = np.flatnonzero(may_end).tolist()
        is_rule = self.stops.ends(self.table.rule[rows[which]], tokens[which]).tolist()
        reasons = [
            (i, self._finish_reason(rows[i].item(), tokens[i].item(), is_end))
            for i, is_end in zip(which, is_rule, strict=True)
        ]
        return {i: reason for i, reason in reasons if reason is not None}

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

    def _finish(self, ended: dict[int, str]) -> None:
        """Hands finished extensions, the rows and how each has ended, to their requests.

        Each branch now ends with the new segment.
        """
        table, store, rows = self.table, self.store, list(ended)
        self._bill(rows)
        generated = table.generated(rows)
        jobs = [table.jobs[row] for row in rows]
        table.remove(rows)
        for job, (tokens, logprobs), reason in zip(jobs, generated, ended.values(), strict=True):
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
        self.num_ended += len(jobs)

    def cut(self, job: GenerateJob) -> None:
        """Finishes an extension with the tokens that it has."""
        self._finish({job.row: "length"})

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
