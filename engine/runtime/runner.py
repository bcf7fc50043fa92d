"""One model at work: every tick is one forward over whatever any problem has pending."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from engine.accounting import ModelShape
from engine.counts import check_count
from engine.runtime.decode_table import UNKNOWN, ActiveRows, DecodeTable
from engine.runtime.decoding import Decoding
from engine.runtime.executors.base import Executor, ModelParts
from engine.runtime.executors.cpu import CPUExecutor
from engine.runtime.executors.gpu import GPUExecutor
from engine.runtime.flights import Flights
from engine.runtime.one_thread import OneThread
from engine.runtime.preemption import PoolTooSmall, choose_victim
from engine.runtime.prefill import Prefill
from engine.runtime.requests import GeneratedTokens, GenerateJob, GenerateRequest, PrefillJob, Request
from engine.runtime.segments import Segment, SegmentStore
from ttc_kernels._native import OutOfBlocks

# Forwards of one tick, for a caller that runs nothing but one model: few enough that a key press soon has its effect.
MAX_FORWARDS = 64
MAX_BATCH = 1 << 16  # branches of one forward; the decode table has a row for each


class Runner:
    """Batches the requests of one model and runs them; a second thread gets a UserError.

    `max_batch` bounds the branches that are decoded in one forward, `max_chunk` the tokens that are prefilled beside
    them. Neither changes a result. Where the executor lets standby rows refill the batch, the table has twice as many
    rows: the second half have their first token drawn and wait for a place.
    """

    is_remote = False

    def __init__(self, parts: ModelParts, *, max_batch: int = 256, max_chunk: int = 1024):
        max_batch, max_chunk = check_count("max_batch", max_batch, 1, MAX_BATCH), check_count("max_chunk", max_chunk)
        self.parts, self.pool, self.tree = parts, parts.pool, parts.pool.tree
        self.shape = _shape(parts)
        self.executor: Executor = (CPUExecutor if parts.decoder.placement.is_native else GPUExecutor)(parts)
        self.store = SegmentStore(self.tree)
        self.table = DecodeTable(max_batch, num_standby=max_batch if self.executor.refills else 0)
        self.decoding = Decoding(self.store, self.shape, self.table, parts.decoder.config.vocab_size)
        self.stops = self.decoding.stops
        self.prefill = Prefill(self.store, self.shape, self._make_room, self.fail)
        self.flights = Flights(self.pool, self.prefill, self.decoding, has_lm_head=parts.lm_head is not None)
        self.max_chunk = max_chunk
        self.queue: deque[GenerateJob] = deque()
        self.suspended: list[GenerateJob] = []
        self.num_ticks = self.num_suspensions = 0
        self.in_use = OneThread("a model")
        self.samples = parts.lm_head is not None

    # -- requests ---------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self.table.num_used or self.prefill.targets or self.queue or self.suspended or self.flights)

    @property
    def is_in_flight(self) -> bool:
        """Whether the last tick has started a forward that has not been read: on a GPU."""
        return bool(self.flights)

    @property
    def is_waiting(self) -> bool:
        """Whether that forward still runs: a verifier's next tick would wait for it."""
        return self.flights.is_waiting

    @property
    def num_given_tokens(self) -> int:
        return self.prefill.num_tokens

    @property
    def num_wanted_rows(self) -> int:
        """So many that most rows of the batch are taken, and no more: the KV of fewer stays in a CPU's cache."""
        size = self.table.batch_size
        return size + size // (2 if self.table.num_rows > size else 1)

    @property
    def num_free_blocks(self) -> int:
        """Those of cached prefixes included."""
        return self.tree.num_free_blocks + self.tree.num_cached_blocks

    def submit_generate(self, job: GenerateJob) -> None:
        """Queues a branch for generating."""
        job.branch.job = job
        self.queue.append(job)

    def submit_prefill(self, job: PrefillJob) -> None:
        """Queues a segment to be computed."""
        job.branch.job = job
        self.prefill.target(job.segment).prefill_jobs.append(job)

    def check_fit(self, segment: Segment, *run_lengths: int) -> None:
        """Raises PoolTooSmall if a branch cannot live in the pool even alone, with further runs of these lengths."""
        num_blocks = self.store.num_blocks
        needed = segment.num_blocks_before + num_blocks(len(segment.tokens)) + sum(map(num_blocks, run_lengths))
        if needed > self.tree.num_blocks:
            length, available = segment.end + sum(run_lengths), self.tree.num_blocks
            raise PoolTooSmall(f"a branch of {length} tokens needs {needed} KV blocks, the pool has {available}")

    def cancel_generate(self, job: GenerateJob) -> None:
        """Takes a job out, wherever it is: its branch is being closed, or its request has failed.

        A job that a tick was moving when it failed may be nowhere.
        """
        if job.row >= 0:
            if not self.table.is_decoding[job.row]:
                self.prefill.forget(job.source, job)
            self.table.remove([job.row])
        elif job in self.suspended:
            self.suspended.remove(job)
        else:
            with suppress(ValueError):
                self.queue.remove(job)
        self.store.release(job.partial)
        job.partial = job.branch.job = None
        self._forget_flights()

    def cancel_prefill(self, job: PrefillJob) -> None:
        """Takes a waiting job out: its branch is being closed, or its request has failed."""
        self.prefill.forget(job.segment, job)
        job.branch.job = None
        self._forget_flights()

    def cut(self, request: GenerateRequest) -> None:
        """Ends what a request still generates: each branch keeps the tokens that it has, and finishes by "length"."""
        with self.in_use:
            while self.flights:
                self.flights.land()
            for job in [each for each in self._jobs() if each.request is request]:
                if job.row >= 0 and self.table.is_decoding[job.row]:
                    self.decoding.cut(job)
                else:
                    job.cancel()
                    request.results[job.index] = GeneratedTokens((), (), "length", {})
                    request.num_left -= 1

    def generated(self, request: GenerateRequest) -> list[tuple[Sequence[int], Sequence[float]]]:
        """The tokens that each branch of a request has been extended by until now, and their log-probabilities."""
        with self.in_use:
            found = [((), ()) if each is None else (each.token_ids, each.logprobs) for each in request.results]
            jobs = [branch.job for branch in request.branches if branch.job is not None]
            jobs = [job for job in jobs if job.row >= 0 and self.table.is_decoding[job.row]]
            drawn = self.table.generated([job.row for job in jobs]) if jobs else []
            for job, (tokens, logprobs) in zip(jobs, drawn, strict=True):
                num_unread = len(self.flights) if self.table.pending[job.row] == UNKNOWN else 0
                num_read = len(tokens) - num_unread
                found[job.index] = tokens[:num_read], logprobs[:num_read]
            return found

    def _forget_flights(self) -> None:
        """Leaves unread what no job waits for any more."""
        if self.flights and not self.table.num_used and not self._jobs():
            self.flights.clear()

    def fail(self, request: Request, error: BaseException) -> None:
        """Ends a request with an error: the search that awaits it gets the error, all others go on."""
        request.error = error
        for job in self._jobs():
            if job.request is request:
                job.cancel()

    def _jobs(self) -> list[GenerateJob | PrefillJob]:
        """All that has been submitted and has not ended."""
        targets = [*self.prefill.targets.values(), *self.flights.targets()]
        waiting = [job for target in targets for job in target.prefill_jobs if job.branch.job is job]
        return [job for job in (*self.table.jobs, *self.queue, *self.suspended, *waiting) if job is not None]

    def _give_up(self, error: BaseException) -> None:
        """Ends all requests with the error of a tick, after which nothing is certain but the tokens of the branches.

        Their KV is dropped, as that of a forward that has failed was reserved and not written. It is computed again
        when it is needed: open branches can be used as before.
        """
        for job in self._jobs():
            job.request.error = error
            job.cancel()
        self.flights.clear()
        self.prefill.targets.clear()
        for segment in list(self.store.resident):
            self.store.drop(segment)

    # -- one tick ---------------------------------------------------------------------------

    def tick(self, max_forwards: int = 1) -> None:
        """Runs up to `max_forwards` forwards, until something ends, and finishes whatever has ended.

        On a CPU, what is to be prefilled takes a forward of its own where the native loop decodes, and one with the
        decoding rows where it does not. On a GPU each is started before the one before it is read, so the last one
        still runs when this returns. What it raises ends all requests, see `_give_up`.
        """
        with self.in_use:
            try:
                ended = self.decoding.num_ended, self.prefill.num_ended
                for _ in range(max_forwards):
                    self._tick(max_forwards)
                    is_over = not self.has_work or (self.decoding.num_ended, self.prefill.num_ended) != ended
                    if self.executor.decodes or is_over:
                        break
            except BaseException as error:
                self._give_up(error)
                raise

    def _tick(self, max_forwards: int) -> None:
        if not self.samples and self.flights:
            self.flights.land()  # a step that is being read is not to be read again
        if self.suspended:
            self._resume()
        if self.queue and self.table.num_free:
            self._admit()
        if self.executor.refills and self.table.has_active and self.prefill.targets:
            self._prefill_first()
        active = self._reserve_decode()
        chunks = []
        if self.prefill.targets and (active is None or not self.executor.refills):
            chunks = self.prefill.reserve(self.max_chunk, is_alone=active is None)
        if chunks or active is not None:
            if not chunks and self.executor.decodes:
                self.num_ticks += self._run_decode(max_forwards)
                return
            self.num_ticks += 1
            self.flights.launch(self.executor, active, chunks)
            if self.executor.is_asynchronous and len(self.flights) == 1:
                return
        if self.flights:
            self.flights.land()

    def _prefill_first(self) -> None:
        """Computes what waits in a forward of its own: the native loop decodes faster than a forward of both."""
        if chunks := self.prefill.reserve(self.max_chunk, is_alone=False):
            self.num_ticks += 1
            self.flights.launch(self.executor, None, chunks)
            self.flights.land()

    def _admit(self) -> None:
        """Gives queued jobs their rows; they wait for their sources to be computed."""
        jobs = list(islice(self.queue, self.table.num_free))
        self.table.add(jobs)
        for job in jobs:
            self.queue.popleft()
            self.prefill.target(job.source).generate_jobs.append(job)

    def _reserve_decode(self) -> ActiveRows | None:
        """Appends the pending tokens of the rows to be decoded to the tree; suspends rows if the pool is full.

        Where a forward still draws the token, UNKNOWN stands for it. No cached prefix is given up for such.
        """
        table = self.table
        while table.has_active:
            active = table.active()
            num = active.num_placed
            if self.flights and self.tree.blocks_needed(active.handles, active.ones) > self.tree.num_free_blocks:
                self.flights.land()
                continue
            try:
                self.tree.extend(active.handles[:num], active.ones[:num], active.pending[:num])
                return active
            except OutOfBlocks as error:
                if not self._make_room(frozenset(), table.num_decoding > 1):
                    self.fail(table.decoding_jobs()[0].request, PoolTooSmall(str(error)))
        return None

    def _run_decode(self, max_forwards: int) -> int:
        """Runs forwards of decoding rows alone; returns how many."""
        wait_for = self.decoding.return_rule(has_queue=bool(self.queue))
        drawn = self.executor.decode(self.table, self.stops, max_forwards, wait_for)
        self.decoding.push_active(drawn)
        return len(drawn.tokens)

    # -- memory -----------------------------------------------------------------------------

    def _make_room(self, busy: Set[Segment], may_suspend: bool) -> bool:
        """Frees the KV of one segment outside `busy`; False if there is none that may give way."""
        if self.flights:
            self.flights.land()
            return True
        jobs = {job.partial: job for job in self.table.decoding_jobs()}
        victim = choose_victim(self.store, jobs, busy, may_suspend)
        if victim is None:
            return False
        if victim in jobs:
            self.suspend(jobs[victim])
        else:
            self.store.drop(victim)
        return True

    def suspend(self, job: GenerateJob) -> None:
        """Gives up a decoding row's KV; its job waits to be computed again."""
        self.decoding.suspend(job)
        self.suspended.append(job)
        self.num_suspensions += 1

    def _resume(self) -> None:
        """Queues suspended jobs again while there is room for them beside what runs."""
        self.suspended.sort(key=lambda job: (job.age, -job.priority))
        while self.suspended:
            segments = self.suspended[0].source.pending_chain()
            needed = sum(1 + self.store.num_blocks(len(segment.tokens)) for segment in segments)
            room = self.num_free_blocks - self.table.num_used
            is_idle = not self.queue and not self.prefill.targets and not self.table.num_used
            if needed + 1 > room and not is_idle:
                return
            self.queue.appendleft(self.suspended.pop(0))
            if is_idle:
                return


def _shape(parts: ModelParts) -> ModelShape:
    """What a forward costs; a verifier's has its own head in the place of the LM head."""
    shape = parts.decoder.config.shape(parts.lm_head is not None)
    if parts.lm_head is not None or parts.score_head is None:
        return shape
    trunk, head = shape.num_matmul_params - shape.num_head_params, parts.score_head.num_params
    return replace(shape, num_matmul_params=trunk + head, num_head_params=head)
