"""One model at work: every tick is one forward over whatever any problem has pending."""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.accounting import ModelShape
from engine.errors import UserError
from engine.model import Decoder, LMHead, ScoreHead
from engine.runtime.decode_table import Active
from engine.runtime.decoding import Decoding
from engine.runtime.executors.cpu import Drawn, HostModel
from engine.runtime.executors.gpu import DeviceModel
from engine.runtime.executors.transfers import Fetch
from engine.runtime.kv import KVPool
from engine.runtime.preemption import PoolTooSmall, free_some
from engine.runtime.prefill import Feeding, Piece
from engine.runtime.requests import FeedJob, Request, SampleJob
from engine.runtime.segments import Segment, SegmentStore
from ttc_kernels._native import OutOfBlocks

# Of one tick: whoever runs nothing but one model lets it go on for so long, yet a key press soon has its effect.
MAX_FORWARDS = 64


@dataclass(frozen=True)
class _Flight:
    """A forward that has been started, and what is to be done with its scores."""

    pieces: list[Piece]
    owners: list[tuple[list[float], int]]  # for each score the list and the index that it fills
    scores: Fetch


class Runner:
    """Batches the requests of one model and runs them; not thread-safe.

    `max_rows` bounds the branches sampled in one forward (where the model can let others take their places, as many
    more have their first tokens drawn), `max_chunk` the tokens fed beside them. Neither changes a result.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        *,
        lm_head: LMHead | None = None,
        score_head: ScoreHead | None = None,
        max_rows: int = 256,
        max_chunk: int = 1024,
    ):
        if max_rows < 1 or max_chunk < 1:
            raise UserError(f"batch limits must be at least 1, got {max_rows} rows and {max_chunk} tokens")
        self.decoder, self.pool, self.tree = decoder, pool, pool.tree
        self.lm_head, self.score_head = lm_head, score_head
        self.shape = _shape(decoder, lm_head, score_head)
        model = HostModel if decoder.placement.is_native else DeviceModel
        self.model = model(decoder, pool, lm_head, score_head)
        self._flight: _Flight | None = None  # a verifier's, where it runs beside others
        self.store = SegmentStore(self.tree)
        num_standby = max_rows if self.model.refills else 0
        self.decoding = Decoding(self.store, self.shape, max_rows, num_standby, decoder.config.vocab_size)
        self.rows, self.stops = self.decoding.rows, self.decoding.stops
        self.feeding = Feeding(self.store, self.shape, self._make_room, self.fail)
        self.max_chunk = max_chunk
        self.queue: deque[SampleJob] = deque()
        self.suspended: list[SampleJob] = []
        self.num_ticks = self.num_suspensions = 0

    # -- requests ---------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self.rows.num_used or self.feeding.targets or self.queue or self.suspended)

    @property
    def is_in_flight(self) -> bool:
        """Whether the last tick has started a forward whose scores have not been read: a verifier's on a GPU."""
        return self._flight is not None

    @property
    def is_waiting(self) -> bool:
        """Whether that forward still runs: the next tick would wait for it."""
        return self._flight is not None and not self._flight.scores.is_there

    def submit_sample(self, job: SampleJob) -> None:
        """Queues a branch for sampling."""
        job.branch.job = job
        self.queue.append(job)

    def submit_feed(self, job: FeedJob) -> None:
        """Queues a segment for feeding."""
        job.branch.job = job
        self.feeding.target(job.segment).feeds.append(job)

    def check_fit(self, segment: Segment, *runs: int) -> None:
        """Raises PoolTooSmall if a branch cannot live in the pool even alone, after runs of so many tokens more."""
        num_blocks = self.store.num_blocks
        needed = segment.num_blocks_before + num_blocks(len(segment.tokens)) + sum(map(num_blocks, runs))
        if needed > self.tree.num_blocks:
            length, available = segment.end + sum(runs), self.tree.num_blocks
            raise PoolTooSmall(f"a branch of {length} tokens needs {needed} KV blocks, the pool has {available}")

    def cancel(self, job: SampleJob) -> None:
        """Takes a job out, wherever it is; its branch is being closed, or its request has failed."""
        if job.row >= 0:
            if not self.rows.is_decoding[job.row]:
                target = self.feeding.targets[job.source]
                target.samples.remove(job)
                self.feeding.drop_if_idle(target)
            self.rows.remove([job.row])
        elif job in self.suspended:
            self.suspended.remove(job)
        else:
            self.queue.remove(job)
        self.store.release(job.partial)
        job.branch.job = None

    def cancel_feed(self, job: FeedJob) -> None:
        """Takes a waiting feed job out; its branch is being closed, or its request has failed."""
        target = self.feeding.targets[job.segment]
        target.feeds.remove(job)
        self.feeding.drop_if_idle(target)
        job.branch.job = None

    def fail(self, request: Request, error: Exception) -> None:
        """Ends a request with an error; the search that awaits it gets it, all others go on."""
        request.error = error
        for job in [j for j in (*self.rows.jobs, *self.queue, *self.suspended) if j and j.request is request]:
            self.cancel(job)
        for target in list(self.feeding.targets.values()):
            for job in [job for job in target.feeds if job.request is request]:
                self.cancel_feed(job)

    # -- one tick ---------------------------------------------------------------------------

    def tick(self, max_forwards: int = 1) -> None:
        """One forward pass; finishes whatever it completes.

        Where branches are sampled and nothing is to be fed, up to `max_forwards`, until enough of them are complete.
        """
        if self._flight is not None:
            self._land()
        if self.suspended:
            self._resume()
        if self.queue and self.rows.num_free:
            self._admit()
        active = self._reserve_decode()
        pieces = self.feeding.reserve(self.max_chunk, is_alone=active is None) if self.feeding.targets else []
        if pieces:
            self.num_ticks += 1
            self._run_mixed(active, pieces)
        elif active is not None:
            self.num_ticks += self._run_decode(max_forwards)

    def _admit(self) -> None:
        """Gives queued jobs their rows; they wait for their sources to be fed."""
        jobs = [self.queue.popleft() for _ in range(min(len(self.queue), self.rows.num_free))]
        self.rows.add(jobs)
        for job in jobs:
            self.feeding.target(job.source).samples.append(job)

    def _reserve_decode(self) -> Active | None:
        """Appends the pending tokens of the rows that have places to the tree, suspending rows if it is full."""
        rows = self.rows
        while rows.num_decoding:
            active = rows.active()
            try:
                num = active.num_placed
                self.tree.extend(active.handles[:num], active.ones[:num], active.pending[:num])
                return active
            except OutOfBlocks as error:
                if not self._make_room(frozenset(), rows.num_decoding > 1):
                    self.fail(rows.decoding_jobs()[0].request, PoolTooSmall(str(error)))
        return None

    def _run_decode(self, max_forwards: int) -> int:
        """Forwards of decoding rows alone; how many."""
        drawn = self.model.decode(self.rows, self.stops, max_forwards, self.decoding.ready(bool(self.queue)))
        self._keep_scores(self.rows.active().slots, drawn)
        self.decoding.push_active(drawn.tokens, drawn.logprobs, drawn.counts)
        return len(drawn.tokens)

    def _run_mixed(self, active: Active | None, pieces: list[Piece]) -> None:
        """A forward of pieces, and of the decoding rows beside them."""
        num_decode = 0 if active is None else active.num_placed
        handles = np.array([piece.handle for piece in pieces], np.int32)
        queries = np.array([piece.num_tokens for piece in pieces], np.int32)
        if active is not None:
            handles = np.concatenate([active.handles[:num_decode], handles])
            queries = np.concatenate([active.ones[:num_decode], queries])
        plan = self.tree.plan(handles, queries)
        last_row = np.empty(len(handles), np.int64)  # of each branch, in the plan
        last_row[plan.order] = plan.row_start[1:] - 1
        first_row = last_row - queries + 1
        slots = plan.slots
        unstored = [num_decode + i for i, piece in enumerate(pieces) if not piece.is_stored]
        if unstored:
            slots = slots.copy()
            slots[last_row[unstored]] = -1
        hidden = self.model.forward(plan, slots)
        self.feeding.bill(pieces, self.lm_head is not None)
        where, owners = self.feeding.score_rows(pieces, first_row[num_decode:].tolist())
        self._flight = _Flight(pieces, owners, self.model.scores(hidden, where))
        if self.lm_head is not None:
            self._land()
            self._draw(active, pieces, last_row, hidden)
        elif not self.model.is_asynchronous:
            self._land()

    def _land(self) -> None:
        """Waits for the last forward's scores and hands them out; a verifier's targets are complete then."""
        flight, self._flight = self._flight, None
        # By index, not appended: a segment that is dropped half-fed is read again from its start.
        for (scores, at), score in zip(flight.owners, flight.scores.arrays()[0].tolist(), strict=True):
            scores[at] = score
        if self.lm_head is None:
            for piece in flight.pieces:
                # Nobody may wait for it any more: its branch has been closed since, or its request has failed.
                if piece.is_complete and self.feeding.targets.get(piece.target.segment) is piece.target:
                    self.feeding.complete(piece.target)
                    self.feeding.finish(piece.target, None)

    def _draw(self, active: Active | None, pieces: list[Piece], last_row: np.ndarray, hidden: torch.Tensor) -> None:
        """Samples one token for every decoding row and every row whose source has just been fed."""
        num_decode = 0 if active is None else active.num_placed
        read = list(range(num_decode))  # branches whose logits are needed
        pick = read.copy()  # for each row to be sampled, an index into `read`
        complete: list[tuple[Piece, int]] = []
        for i, piece in enumerate(pieces, start=num_decode):
            if piece.is_complete:
                self.feeding.complete(piece.target)
                if piece.target.wants_logits:
                    read.append(i)
                complete.append((piece, len(read) - 1))
                pick += [len(read) - 1] * len(piece.target.samples)
        started = [job for piece, _ in complete for job in piece.target.samples]
        slots = np.array([job.row for job in started], np.int64)
        if active is not None:
            slots = np.concatenate([active.slots[:num_decode], slots])
        drawn, logits = None, None
        if read:
            needs_logits = any(job.request.wants_logits for piece, _ in complete for job in piece.target.feeds)
            rows = np.array(pick, np.int64)
            sampling = self.rows.sampling(slots)
            drawn, logits = self.model.draw(hidden, last_row[read], rows, sampling, self.stops.is_scored, needs_logits)
        for piece, index in complete:
            self.feeding.finish(piece.target, None if logits is None else logits[index])
        if started:
            self.decoding.start(started)
        if pick:
            self._keep_scores(slots, drawn)
            self.decoding.push(slots, drawn.tokens[0], drawn.logprobs[0])

    def _keep_scores(self, slots: np.ndarray, drawn: Drawn) -> None:
        """Puts down what the trunk head has read, with the rows' jobs."""
        for slot, score in zip(slots[drawn.scored].tolist(), drawn.scores, strict=True):
            self.rows.jobs[slot].trunk_scores.append(score)

    # -- memory -----------------------------------------------------------------------------

    def _make_room(self, busy: Set[Segment], may_suspend: bool) -> bool:
        return free_some(self, busy, may_suspend)

    def suspend(self, job: SampleJob) -> None:
        """Gives up a decoding row's KV; its job waits to be re-computed."""
        self.decoding.suspend(job)
        self.suspended.append(job)
        self.num_suspensions += 1

    def _resume(self) -> None:
        """Queues suspended jobs again while there is room for them beside what runs."""
        self.suspended.sort(key=lambda job: (job.age, -job.priority))
        while self.suspended:
            segments = self.suspended[0].source.chain()
            needed = sum(1 + self.store.num_blocks(len(segment.tokens)) for segment in segments)
            room = self.tree.num_free_blocks + self.tree.num_cached_blocks - self.rows.num_used
            is_idle = not self.queue and not self.feeding.targets and not self.rows.num_used
            if needed + 1 > room and not is_idle:
                return
            self.queue.appendleft(self.suspended.pop(0))
            if is_idle:
                return


def _shape(decoder: Decoder, lm_head: LMHead | None, score_head: ScoreHead | None) -> ModelShape:
    """What a forward costs: of a verifier, with its own head in the place of the LM head."""
    shape = decoder.config.shape(lm_head is not None)
    if lm_head is not None or score_head is None:
        return shape
    trunk, head = shape.num_matmul_params - shape.num_head_params, score_head.num_params
    return replace(shape, num_matmul_params=trunk + head, num_head_params=head)
