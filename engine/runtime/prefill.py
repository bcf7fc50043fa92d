"""Given tokens on their way into the KV cache: prompts, verifiers' steps, and what has to be computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.accounting import ModelShape, forward_flops
from engine.runtime.preemption import PoolTooSmall
from engine.runtime.requests import GenerateJob, PrefillJob, Request
from engine.runtime.segments import Segment, SegmentStore
from ttc_kernels._native import OutOfBlocks


@dataclass(eq=False, slots=True)
class Target:
    """A segment that is to be computed, and the jobs that wait for it."""

    segment: Segment
    generate_jobs: list[GenerateJob] = field(default_factory=list)  # draw their next token from its last logits
    prefill_jobs: list[PrefillJob] = field(default_factory=list)
    num_new: int = 0  # tokens computed for it so far, its origins' included

    @property
    def wants_logits(self) -> bool:
        return bool(self.generate_jobs) or any(job.request.wants_logits for job in self.prefill_jobs)


@dataclass(eq=False, slots=True)
class Chunk:
    """What one forward computes for a target: the last `num_tokens` tokens of a branch of the tree."""

    target: Target
    handle: int
    num_tokens: int
    runs: list[tuple[Segment, int, int]]  # segment, first position, number of tokens
    is_complete: bool  # ends with the target's last token
    is_stored: bool = True  # False: the last token has KV already and is computed for its logits alone


class Prefill:
    """The segments that wait to be computed, and what each forward computes of them."""

    def __init__(
        self,
        store: SegmentStore,
        shape: ModelShape,
        make_room: Callable[[Set[Segment], bool], bool],  # (busy, may_suspend): frees KV outside `busy`, False if none
        fail: Callable[[Request, Exception], None],  # ends a request with an error
    ):
        self.store, self.shape = store, shape
        self.make_room, self.fail = make_room, fail
        self.targets: dict[Segment, Target] = {}
        self.num_ended = 0  # prefill jobs until now

    @property
    def num_tokens(self) -> int:
        """Tokens that wait in the targets themselves; origins without KV are not counted."""
        return sum(len(segment.tokens) - segment.num_computed for segment in self.targets)

    def target(self, segment: Segment) -> Target:
        """The target of a segment, made if there is none."""
        target = self.targets.get(segment)
        if target is None:
            target = self.targets[segment] = Target(segment)
        return target

    def forget(self, segment: Segment, job: GenerateJob | PrefillJob) -> None:
        """Takes a job off a segment's target, if it waits there; a target for which none waits any more is dropped."""
        target = self.targets.get(segment)
        if target is None:
            return
        for jobs in (target.generate_jobs, target.prefill_jobs):
            if job in jobs:
                jobs.remove(job)
        if not target.generate_jobs and not target.prefill_jobs:
            del self.targets[segment]

    # -- one forward -------------------------------------------------------------------------

    def reserve(self, max_tokens: int, is_alone: bool) -> list[Chunk]:
        """Reserves KV slots for what the next forward computes, at most `max_tokens`, the oldest problem's first.

        A segment is taken before those that follow it, so each segment ends at most one chunk and its logits are
        available there. With `is_alone` nothing else would run, so room is made for the first chunk if there is none.
        """
        reservation = _Reservation(self, max_tokens, is_alone)
        for target in sorted(self.targets.values(), key=lambda target: (target.segment.age, target.segment.start)):
            if reservation.budget <= 0:
                break
            reservation.add(target)
        reservation.reserve_group()
        return reservation.chunks

    def bill(self, chunks: Sequence[Chunk], has_lm_head: bool) -> None:
        """Puts what has been run on the bills of the segments."""
        for chunk in chunks:
            target = chunk.target
            for segment, first, count in chunk.runs:
                again = min(max(segment.max_computed - (first - segment.start), 0), count)
                if again:
                    segment.ledger.add("recomputed", again, forward_flops(self.shape, first, again, 0))
                num_heads = int(_is_scored(segment, first, count))
                if segment is target.segment:
                    num_heads += _num_logits(chunk, count) if has_lm_head else _num_scores(target, first, count)
                new = count - again
                flops = forward_flops(self.shape, first + again, new, num_heads)
                segment.ledger.add(segment.purpose, 0 if segment.is_counted else new, flops)
                segment.max_computed = max(segment.max_computed, segment.num_computed)
            if not chunk.is_stored:
                segment = target.segment
                segment.ledger.add("recomputed", 1, forward_flops(self.shape, segment.end - 1, 1))

    def scored_queries(self, chunks: Sequence[Chunk], first_queries: Sequence[int]) -> tuple[list[int], list[tuple]]:
        """The queries of this forward that the score head reads, and where each score goes: a list and an index.

        `first_queries[i]` is the query of the first token of `chunks[i]`.
        """
        where: list[int] = []
        owners: list[tuple[list[float], int]] = []
        for chunk, query in zip(chunks, first_queries, strict=True):
            if not chunk.runs:
                continue
            first = chunk.runs[0][1]
            for job in chunk.target.prefill_jobs:
                for at, position in enumerate(job.score_at):
                    if first <= position < first + chunk.num_tokens:
                        where.append(query + position - first)
                        owners.append((job.request.scores[job.index], at))
            for segment, start, count in chunk.runs:
                if _is_scored(segment, start, count):
                    where.append(query + start + count - 1 - first)
                    owners.append((segment.score, 0))
        return where, owners

    def given_queries(
        self, chunks: Sequence[Chunk], first_queries: Sequence[int]
    ) -> tuple[list[tuple[int, int]], list[tuple[list, int]]]:
        """The queries of this forward after which a token's log-probability is read, and where each goes.

        The first are (query, token), the others a list and an index; `first_queries` is as for `scored_queries`.
        """
        given: list[tuple[int, int]] = []
        owners: list[tuple[list, int]] = []
        for chunk, query in zip(chunks, first_queries, strict=True):
            segment, first, count = chunk.runs[-1] if chunk.runs else (None, 0, 0)
            for job in chunk.target.prefill_jobs:
                if job.next_tokens and job.segment is segment:
                    start, end = first - segment.start, first - segment.start + count
                    queries = range(query + chunk.num_tokens - count, query + chunk.num_tokens)
                    given += zip(queries, job.next_tokens[start:end], strict=True)
                    owners += ((job.request.logprobs[job.index], at) for at in range(start, end))
        return given, owners

    def complete(self, target: Target) -> None:
        """Takes a computed target out; bills each waiting job for what it found in the KV cache instead."""
        del self.targets[target.segment]
        end = target.segment.end
        new = min(target.num_new, end)  # num_new is larger if a segment was dropped half-computed
        for job in target.generate_jobs:
            job.branch.ledger.add("cached", end - new)
            new = 0
        for job in target.prefill_jobs:
            job.segment.ledger.add("cached", end - new)
            new = 0

    def finish(self, target: Target, logits: torch.Tensor | None) -> None:
        """Ends the prefill jobs of a complete target; `logits` are those of its last token, if a job wants them."""
        for job in target.prefill_jobs:
            if job.branch.job is not job:
                continue  # taken out since the forward was started
            self.num_ended += 1
            if job.request.wants_logits:
                job.request.logits[job.index] = logits.clone()
            if job.steps:
                job.request.scores[job.index] = [segment.score[0] for segment in job.steps]
            job.branch.job = None
            job.request.num_left -= 1


def _num_logits(chunk: Chunk, count: int) -> int:
    """How many of a chunk's last `count` positions, which are its target's, go through the LM head."""
    if any(job.next_tokens for job in chunk.target.prefill_jobs):
        return count
    return int(chunk.is_complete and chunk.target.wants_logits)


def _num_scores(target: Target, first: int, count: int) -> int:
    """How many of the positions first .. first + count - 1 go through the score head."""
    return sum(first <= position < first + count for job in target.prefill_jobs for position in job.score_at)


def _is_scored(segment: Segment, first: int, count: int) -> bool:
    """Whether the positions first .. first + count - 1 end with the last of a step that has no score yet."""
    return segment.score is not None and segment.score[0] is None and first + count == segment.end


class _Reservation:
    """The chunks of one forward as they are put together.

    Most targets are whole segments whose origin has been computed. These are grouped and reserved with few calls of
    the tree. All others, and a group that does not fit, are reserved one by one.
    """

    def __init__(self, prefill: Prefill, budget: int, is_alone: bool):
        self.prefill, self.store = prefill, prefill.store
        self.budget = budget  # tokens
        self.is_alone = is_alone
        self.chunks: list[Chunk] = []
        self.group: list[Target] = []
        self.busy: set[Segment] = set()  # must keep their KV

    def add(self, target: Target) -> None:
        """Reserves a target, or puts it into the group that is reserved next."""
        segment = target.segment
        count = len(segment.tokens) - segment.num_computed
        is_origin_computed = segment.origin.is_computed if segment.origin is not None else segment.is_resident
        if is_origin_computed and 0 < count <= self.budget:
            self.group.append(target)
            self.budget -= count
        else:
            self.reserve_group()
            self.reserve(target)

    def reserve_group(self) -> None:
        """Reserves the whole group at once, or one by one if it does not fit."""
        if not self.group:
            return
        group, self.group = self.group, []
        segments = [target.segment for target in group]
        self.store.fork_all([segment for segment in segments if not segment.is_resident])
        runs = [
            segment.tokens[segment.num_computed :] if segment.num_computed else segment.tokens for segment in segments
        ]
        counts = [len(run) for run in runs]
        try:
            self.store.tree.extend(
                np.array([segment.handle for segment in segments], np.int32),
                np.array(counts, np.int32),
                np.array([token for run in runs for token in run], np.int32),
            )
        except OutOfBlocks:
            self.budget += sum(counts)
            for target in group:
                if self.budget > 0:
                    self.reserve(target)
            return
        for target, segment, count in zip(group, segments, counts, strict=True):
            self.busy.add(segment)
            if segment.origin is not None:
                self.busy.add(segment.origin)
            run = (segment, segment.start + segment.num_computed, count)
            self.chunks.append(Chunk(target, segment.handle, count, [run], True))
            segment.num_computed += count
            target.num_new += count

    def reserve(self, target: Target) -> None:
        """Reserves what fits of a target and of the segments before it."""
        if target.segment not in self.prefill.targets:
            return  # no job waits for it any more: the request of an earlier target has failed
        chain = target.segment.pending_chain()
        if not chain:
            self.busy.add(target.segment)
            self._append(Chunk(target, target.segment.handle, 1, [], True, is_stored=False))
            return
        self.busy.update(chain)
        if chain[0].origin is not None:
            self.busy.add(chain[0].origin)
        chunk = self._chunk(target, chain)
        target.num_new += chunk.num_tokens
        if chunk.num_tokens:
            self._append(chunk)
        elif self._is_first:
            num_blocks = self.store.tree.num_blocks
            error = PoolTooSmall(f"a branch of {target.segment.end} tokens does not fit the {num_blocks} KV blocks")
            for request in {job.request for job in (*target.generate_jobs, *target.prefill_jobs)}:
                self.prefill.fail(request, error)

    def _chunk(self, target: Target, chain: Sequence[Segment]) -> Chunk:
        """As many tokens of the chain, from its first segment on, as the budget and the pool have room for."""
        chunk = Chunk(target, -1, 0, [], False)
        for segment in chain:
            if not segment.is_resident:
                self.store.make_resident(segment)
            count = min(self.budget - chunk.num_tokens, len(segment.tokens) - segment.num_computed)
            if count and not self._extend(segment, count, must_free=self._is_first and not chunk.num_tokens):
                break
            chunk.handle = segment.handle
            chunk.num_tokens += count
            chunk.runs.append((segment, segment.start + segment.num_computed, count))
            segment.num_computed += count
            if not segment.is_computed:
                break
        chunk.is_complete = target.segment.is_computed
        return chunk

    @property
    def _is_first(self) -> bool:
        """Whether nothing at all would run without the next chunk."""
        return self.is_alone and not self.chunks

    def _append(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.budget -= chunk.num_tokens

    def _extend(self, segment: Segment, count: int, must_free: bool) -> bool:
        """Reserves slots for a segment's next tokens. Frees idle branches for it only if it `must_free`."""
        first = segment.num_computed
        tokens = np.array(segment.tokens[first : first + count], np.int32)
        while True:
            try:
                self.store.tree.extend(np.array([segment.handle], np.int32), np.array([count], np.int32), tokens)
                return True
            except OutOfBlocks:
                if not must_free or not self.prefill.make_room(self.busy, True):
                    return False
