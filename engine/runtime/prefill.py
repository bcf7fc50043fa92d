"""Given tokens on their way into the KV cache: prompts, verifiers' steps, what has to be computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.accounting import ModelShape, forward_flops
from engine.runtime.preemption import PoolTooSmall
from engine.runtime.requests import FeedJob, Request, SampleJob
from engine.runtime.segments import Segment, SegmentStore
from ttc_kernels._native import OutOfBlocks


@dataclass(eq=False, slots=True)
class Target:
    """A segment to be fed, and who waits for it: samples to be drawn from its logits, feed jobs."""

    segment: Segment
    samples: list[SampleJob] = field(default_factory=list)
    feeds: list[FeedJob] = field(default_factory=list)
    num_new: int = 0  # tokens fed for it so far

    @property
    def wants_logits(self) -> bool:
        return bool(self.samples) or any(job.request.wants_logits for job in self.feeds)


@dataclass(eq=False, slots=True)
class Piece:
    """What one tick feeds of a target: the tokens that end a branch."""

    target: Target
    handle: int
    num_tokens: int
    runs: list[tuple[Segment, int, int]]  # segment, first position, number of tokens
    is_complete: bool
    is_stored: bool = True  # False: the last token's KV is there already, only its logits are asked for


class Feeding:
    """The segments that wait to be fed, and what each tick feeds of them.

    `make_room(busy, may_suspend)` frees KV outside the segments in `busy` and is False where it cannot;
    `fail(request, error)` ends a request.
    """

    def __init__(
        self,
        store: SegmentStore,
        shape: ModelShape,
        make_room: Callable[[Set[Segment], bool], bool],
        fail: Callable[[Request, Exception], None],
    ):
        self.store, self.shape = store, shape
        self.make_room, self.fail = make_room, fail
        self.targets: dict[Segment, Target] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens that wait, prompts of segments without KV apart."""
        return sum(len(segment.tokens) - segment.num_fed for segment in self.targets)

    def target(self, segment: Segment) -> Target:
        """The target of a segment, made where there is none."""
        target = self.targets.get(segment)
        if target is None:
            target = self.targets[segment] = Target(segment)
        return target

    def drop_if_idle(self, target: Target) -> None:
        """Forgets a target for which nobody waits any more."""
        if not target.samples and not target.feeds:
            del self.targets[target.segment]

    # -- one tick ----------------------------------------------------------------------------

    def reserve(self, max_tokens: int, is_alone: bool) -> list[Piece]:
        """What to feed in this tick, the oldest problem's first, at most `max_tokens`; slots are reserved.

        A segment comes before those that start from it: each is then the end of one piece at most, and
        none is fed as a part of another's piece only to be read again for its own logits.
        `is_alone` says that nothing else would go on: then room is made for the first piece.
        """
        reservation = _Reservation(self, max_tokens, is_alone)
        for target in sorted(self.targets.values(), key=lambda target: (target.segment.age, target.segment.start)):
            if reservation.budget <= 0:
                break
            reservation.add(target)
        reservation.reserve_group()
        return reservation.pieces

    def bill(self, pieces: Sequence[Piece], has_lm_head: bool) -> None:
        """Puts what has been run on the bills of the segments."""
        for piece in pieces:
            target = piece.target
            for segment, first, count in piece.runs:
                again = min(max(segment.max_fed - (first - segment.start), 0), count)
                if again:
                    segment.ledger.add("recomputed", again, forward_flops(self.shape, first, again, 0))
                num_heads = int(_is_scored(segment, first, count))
                if segment is target.segment:
                    num_heads += _num_logits(piece) if has_lm_head else _num_scores(target, first, count)
                new = count - again
                flops = forward_flops(self.shape, first + again, new, num_heads)
                segment.ledger.add(segment.purpose, 0 if segment.is_counted else new, flops)
                segment.max_fed = max(segment.max_fed, segment.num_fed)
            if not piece.is_stored:
                segment = target.segment
                segment.ledger.add("recomputed", 1, forward_flops(self.shape, segment.end - 1, 1))

    def score_rows(self, pieces: Sequence[Piece], first_rows: Sequence[int]) -> tuple[list[int], list[tuple]]:
        """Rows of this forward that the score head reads, and for each the (scores, index) that it fills.

        `first_rows[i]` is the row of the first token of `pieces[i]`.
        """
        where: list[int] = []
        owners: list[tuple[list[float], int]] = []
        for piece, row in zip(pieces, first_rows, strict=True):
            if not piece.runs:
                continue
            first = piece.runs[0][1]
            for job in piece.target.feeds:
                for at, position in enumerate(job.score_at):
                    if first <= position < first + piece.num_tokens:
                        where.append(row + position - first)
                        owners.append((job.request.scores[job.index], at))
            for segment, start, count in piece.runs:
                if _is_scored(segment, start, count):
                    where.append(row + start + count - 1 - first)
                    owners.append((segment.score, 0))
        return where, owners

    def complete(self, target: Target) -> None:
        """Takes a fed target out; bills each waiting job for what it found in the KV cache instead of running it."""
        del self.targets[target.segment]
        end = target.segment.end
        new = min(target.num_new, end)  # more, if a segment was dropped half-fed
        for job in target.samples:
            job.branch.ledger.add("cached", end - new)
            new = 0
        for job in target.feeds:
            job.segment.ledger.add("cached", end - new)
            new = 0

    def finish(self, target: Target, logits: torch.Tensor | None) -> None:
        """Ends the feed jobs of a complete target; `logits` are those of its last token, where somebody asked."""
        for job in target.feeds:
            if job.request.wants_logits:
                job.request.logits[job.index] = logits.clone()
            if job.steps:
                job.request.scores[job.index] = [segment.score[0] for segment in job.steps]
            job.branch.job = None
            job.request.num_left -= 1


def _num_logits(piece: Piece) -> int:
    return int(piece.is_complete and piece.target.wants_logits)


def _num_scores(target: Target, first: int, count: int) -> int:
    """How many of the positions first .. first + count - 1 go through the score head."""
    return sum(first <= position < first + count for job in target.feeds for position in job.score_at)


def _is_scored(segment: Segment, first: int, count: int) -> bool:
    """Whether the positions first .. first + count - 1 of a step end with the one where it is still to be scored."""
    return segment.score is not None and segment.score[0] is None and first + count == segment.end


class _Reservation:
    """The pieces of one tick as they are put together.

    Whole segments whose origin has been fed, as most are, are grouped and reserved with few calls of the
    tree; if they do not fit, and for all other segments, it is done one by one.
    """

    def __init__(self, feeding: Feeding, budget: int, is_alone: bool):
        self.feeding, self.store = feeding, feeding.store
        self.budget = budget  # tokens
        self.is_alone = is_alone
        self.pieces: list[Piece] = []
        self.group: list[Target] = []
        self.busy: set[Segment] = set()  # must keep their KV

    def add(self, target: Target) -> None:
        """Reserves a target, or puts it into the group that is reserved next."""
        segment = target.segment
        count = len(segment.tokens) - segment.num_fed
        is_origin_fed = segment.origin.is_fed if segment.origin is not None else segment.is_resident
        if is_origin_fed and 0 < count <= self.budget:
            self.group.append(target)
            self.budget -= count
        else:
            self.reserve_group()
            self.reserve(target)

    def reserve_group(self) -> None:
        """Reserves all of the group at once, or else one by one."""
        if not self.group:
            return
        group, self.group = self.group, []
        segments = [target.segment for target in group]
        self.store.fork_all([segment for segment in segments if not segment.is_resident])
        runs = [segment.tokens[segment.num_fed :] if segment.num_fed else segment.tokens for segment in segments]
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
            self.pieces.append(
                Piece(target, segment.handle, count, [(segment, segment.start + segment.num_fed, count)], True)
            )
            segment.num_fed += count
            target.num_new += count

    def reserve(self, target: Target) -> None:
        """Reserves what fits of a target and of the segments before it."""
        if target.segment not in self.feeding.targets:
            return  # nobody waits for it any more: an earlier one's request has failed
        chain = target.segment.chain()
        if not chain:
            self.busy.add(target.segment)
            self._append(Piece(target, target.segment.handle, 1, [], True, is_stored=False))
            return
        self.busy.update(chain)
        if chain[0].origin is not None:
            self.busy.add(chain[0].origin)
        piece = Piece(target, -1, 0, [], False)
        for segment in chain:
            if not segment.is_resident:
                self.store.make_resident(segment)
            count = min(self.budget - piece.num_tokens, len(segment.tokens) - segment.num_fed)
            if count and not self._extend(segment, count, must_free=self._is_first and not piece.num_tokens):
                break
            piece.handle = segment.handle
            piece.num_tokens += count
            piece.runs.append((segment, segment.start + segment.num_fed, count))
            segment.num_fed += count
            if not segment.is_fed:
                break
        piece.is_complete = target.segment.is_fed
        target.num_new += piece.num_tokens
        if piece.num_tokens:
            self._append(piece)
        elif self._is_first:
            num_blocks = self.store.tree.num_blocks
            error = PoolTooSmall(f"a branch of {target.segment.end} tokens does not fit the {num_blocks} KV blocks")
            for request in {job.request for job in (*target.samples, *target.feeds)}:
                self.feeding.fail(request, error)

    @property
    def _is_first(self) -> bool:
        """Whether nothing at all would go on without the next piece."""
        return self.is_alone and not self.pieces

    def _append(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.budget -= piece.num_tokens

    def _extend(self, segment: Segment, count: int, must_free: bool) -> bool:
        """Reserves slots for a segment's next tokens; frees idle branches only if nothing else would go on."""
        tokens = np.array(segment.tokens[segment.num_fed : segment.num_fed + count], np.int32)
        while True:
            try:
                self.store.tree.extend(np.array([segment.handle], np.int32), np.array([count], np.int32), tokens)
                return True
            except OutOfBlocks:
                if not must_free or not self.feeding.make_room(self.busy, True):
                    return False
