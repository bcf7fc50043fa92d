"""Forwards that have been started and not read: on a GPU one between ticks, and two while the older one is read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from engine.runtime.decode_table import ActiveRows
from engine.runtime.decoding import Decoding, Launch
from engine.runtime.executors.base import Executor, Forward, Pending, planned
from engine.runtime.kv import KVPool
from engine.runtime.prefill import Chunk, Prefill, Target
from engine.runtime.requests import TokenLogprob


@dataclass(frozen=True)
class Flight:
    """A forward that has been started, and what is done with its results when they are there."""

    pending: Pending
    chunks: list[Chunk]
    owners: list[tuple[list[float], int]]  # for each score, the list and the index that it fills
    given: list[tuple[list, int]]  # the same for each log-probability of a given token
    launch: Launch | None  # the rows that draw
    complete: list[tuple[Chunk, int]]  # a policy's computed targets, and which of the forward's logits are theirs


class Flights:
    """Starts a model's forwards, oldest first reads them, and finishes what they complete."""

    def __init__(self, pool: KVPool, prefill: Prefill, decoding: Decoding, *, has_lm_head: bool):
        self.pool, self.prefill, self.decoding, self.has_lm_head = pool, prefill, decoding, has_lm_head
        self.table = decoding.table
        self._flights: deque[Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def is_waiting(self) -> bool:
        """Whether the oldest of them still runs."""
        return bool(self._flights) and not self._flights[0].pending.is_there

    def targets(self) -> list[Target]:
        """A policy's targets that they compute; a verifier's are in `prefill` until they have been read."""
        return [chunk.target for flight in self._flights for chunk, _ in flight.complete]

    def clear(self) -> None:
        """Forgets them all.

        Steps whose scores they would have read lose their KV, and so does what follows them: when one is wanted again
        it is computed, and read, again.
        """
        runs = [run for flight in self._flights for chunk in flight.chunks for run in chunk.runs]
        lost = {segment for segment, _, _ in runs if segment.score == [None]}
        self._flights.clear()
        for segment in list(self.prefill.store.resident) if lost else ():  # an origin comes before what follows it
            if segment in lost or segment.origin in lost:
                lost.add(segment)
                self.prefill.store.drop(segment)

    def launch(self, executor: Executor, active: ActiveRows | None, chunks: list[Chunk]) -> None:
        """Starts a forward of chunks, and of the decoding rows beside them."""
        self._flights.append(self._launch_mixed(executor, active, chunks) if chunks else self._launch_decode(executor))

    def _launch_decode(self, executor: Executor) -> Flight:
        plan, active = planned(self.pool, self.table)
        chain = active.chain if self._flights else None
        drawing = {"sampling": active.sampling, "is_filtered": active.is_filtered}
        pending = executor.launch(Forward(plan, plan.slots, chain, **drawing), self.decoding.stops.is_scored)
        return Flight(pending, [], [], [], self.decoding.launch(None), [])

    def _launch_mixed(self, executor: Executor, active: ActiveRows | None, chunks: list[Chunk]) -> Flight:
        num_decode = 0 if active is None else active.num_placed
        handles = np.array([chunk.handle for chunk in chunks], np.int32)
        counts = np.array([chunk.num_tokens for chunk in chunks], np.int32)
        if active is not None:
            handles = np.concatenate([active.handles[:num_decode], handles])
            counts = np.concatenate([active.ones[:num_decode], counts])
        plan = self.pool.tree.plan(handles, counts)
        last_query = np.empty(len(handles), np.int64)  # of each branch, in the plan
        last_query[plan.order] = plan.row_start[1:] - 1
        first_query = last_query - counts + 1
        slots, chain = plan.slots, None
        unstored = [num_decode + i for i, chunk in enumerate(chunks) if not chunk.is_stored]
        if unstored:
            slots = slots.copy()
            slots[last_query[unstored]] = -1
        if num_decode and self._flights:
            chain = np.full(len(slots), -1, np.int32)
            chain[last_query[:num_decode]] = active.chain[:num_decode]
        scored, owners = self.prefill.scored_queries(chunks, first_query[num_decode:].tolist())
        forward = Forward(plan, slots, chain, scored, where=np.zeros(0, np.int64))
        self.prefill.bill(chunks, self.has_lm_head)
        if not self.has_lm_head:
            return Flight(executor.launch(forward, None), chunks, owners, [], None, [])
        given, places = self.prefill.given_queries(chunks, first_query[num_decode:].tolist())
        return self._launch_drawing(executor, replace(forward, given=given), active, chunks, owners, places, last_query)

    def _launch_drawing(
        self,
        executor: Executor,
        forward: Forward,
        active: ActiveRows | None,
        chunks: list[Chunk],
        owners: list[tuple[list[float], int]],
        places: list[tuple[list, int]],
        last_query: np.ndarray,  # (branches,) int64: the query of each branch's last token, decoding rows first
    ) -> Flight:
        """Has a forward draw a token for every decoding row and every row whose source it computes."""
        num_decode = 0 if active is None else active.num_placed
        read = list(range(num_decode))  # branches whose logits are needed
        pick = read.copy()  # for each row to be sampled, an index into `read`
        complete: list[tuple[Chunk, int]] = []
        for i, chunk in enumerate(chunks, start=num_decode):
            if chunk.is_complete:
                if chunk.target.wants_logits:
                    read.append(i)
                complete.append((chunk, len(read) - 1))
                pick += [len(read) - 1] * len(chunk.target.generate_jobs)
        started = [job for chunk, _ in complete for job in chunk.target.generate_jobs]
        rows = np.array([job.row for job in started], np.int64)
        if active is not None:
            rows = np.concatenate([active.rows[:num_decode], rows])
        forward = replace(
            forward,
            where=last_query[read],
            pick=np.array(pick, np.int64),
            sampling=self.table.sampling(rows) if pick else (),
            is_filtered=self.table.has_filter(rows),
            wants_logits=any(job.request.wants_logits for chunk, _ in complete for job in chunk.target.prefill_jobs),
        )
        pending = executor.launch(forward, self.decoding.stops.is_scored)
        if started:
            self.decoding.start(started)
        launch = self.decoding.launch(rows) if pick else None
        for chunk, _ in complete:  # not before: if the forward cannot be started, their jobs have to be found
            self.prefill.complete(chunk.target)
        return Flight(pending, chunks, owners, places, launch, complete)

    def land(self) -> None:
        """Waits for the oldest forward in flight, hands out what has been read and finishes what has ended."""
        flight = self._flights[0]
        read = flight.pending.read()
        # By index, not appended: a segment that is dropped half-computed is read again from its start.
        for (scores, at), score in zip(flight.owners, read.scores, strict=True):
            scores[at] = score
        if read.given is not None:
            for (logprobs, at), logprob, is_likeliest in zip(flight.given, *read.given.tolist(), strict=True):
                logprobs[at] = TokenLogprob(logprob, bool(is_likeliest))
        if not self.has_lm_head:
            for chunk in flight.chunks:
                # The target is gone if its branch has been closed since, or its request has failed.
                if chunk.is_complete and self.prefill.targets.get(chunk.target.segment) is chunk.target:
                    self.prefill.complete(chunk.target)
                    self.prefill.finish(chunk.target, None)
        for chunk, index in flight.complete:
            self.prefill.finish(chunk.target, None if read.logits is None else read.logits[index])
        if flight.launch is not None:
            self.decoding.land(flight.launch, read.drawn, is_newest=len(self._flights) == 1)
        self._flights.popleft()
        if self._flights and not self.table.num_used and not self._flights[0].chunks:
            self._flights.clear()  # of rows that have all ended in the forward before
