"""Given tokens on their way into the KV cache: prompts, verifiers' steps, what has to be computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.accounting import ModelShape, forward_flops
from engine.runtime.memory import PoolTooSmall
from engine.runtime.requests import FeedJob, Request, SampleJob
from engine.runtime.tips import Tip, TipStore
from ttc_kernels._native import OutOfBlocks


@dataclass(eq=False, slots=True)
class Target:
    """A tip to be fed, and who waits for it: samples to be drawn from its logits, feed jobs."""

    tip: Tip
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
    runs: list[tuple[Tip, int, int]]  # tip, first position, number of tokens
    is_complete: bool
    is_stored: bool = True  # False: the last token's KV is there already, only its logits are asked for


class Feeding:
    """The tips that wait to be fed, and what each tick feeds of them.

    `make_room(busy, may_suspend)` frees KV outside the tips in `busy` and is False where it cannot;
    `fail(request, error)` ends a request.
    """

    def __init__(
        self,
        store: TipStore,
        shape: ModelShape,
        make_room: Callable[[Set[Tip], bool], bool],
        fail: Callable[[Request, Exception], None],
    ):
        self.store, self.shape = store, shape
        self.make_room, self.fail = make_room, fail
        self.targets: dict[Tip, Target] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens that wait, prompts of tips without KV apart."""
        return sum(len(tip.tokens) - tip.num_fed for tip in self.targets)

    def target(self, tip: Tip) -> Target:
        """The target of a tip, made where there is none."""
        target = self.targets.get(tip)
        if target is None:
            target = self.targets[tip] = Target(tip)
        return target

    def drop_if_idle(self, target: Target) -> None:
        """Forgets a target for which nobody waits any more."""
        if not target.samples and not target.feeds:
            del self.targets[target.tip]

    # -- one tick ----------------------------------------------------------------------------

    def reserve(self, max_tokens: int, is_alone: bool) -> list[Piece]:
        """What to feed in this tick, the oldest problem's first, at most `max_tokens`; slots are reserved.

        A tip comes before those that start from it: each is then the end of one piece at most, and
        none is fed as a part of another's piece only to be read again for its own logits.
        `is_alone` says that nothing else would go on: then room is made for the first piece.
        """
        reservation = _Reservation(self, max_tokens, is_alone)
        for target in sorted(self.targets.values(), key=lambda target: (target.tip.age, target.tip.start)):
            if reservation.budget <= 0:
                break
            reservation.add(target)
        reservation.reserve_group()
        return reservation.pieces

    def bill(self, pieces: Sequence[Piece], has_lm_head: bool) -> None:
        """Puts what has been run on the bills of the tips."""
        for piece in pieces:
            target = piece.target
            for tip, first, count in piece.runs:
                again = min(max(tip.max_fed - (first - tip.start), 0), count)
                if again:
                    tip.ledger.add("recomputed", again, forward_flops(self.shape, first, again, 0))
                num_heads = int(_is_scored(tip, first, count))
                if tip is target.tip:
                    num_heads += _num_logits(piece) if has_lm_head else _num_scores(target, first, count)
                new = count - again
                flops = forward_flops(self.shape, first + again, new, num_heads)
                tip.ledger.add(tip.purpose, 0 if tip.is_counted else new, flops)
                tip.max_fed = max(tip.max_fed, tip.num_fed)
            if not piece.is_stored:
                tip = target.tip
                tip.ledger.add("recomputed", 1, forward_flops(self.shape, tip.end - 1, 1))

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
            for tip, start, count in piece.runs:
                if _is_scored(tip, start, count):
                    where.append(row + start + count - 1 - first)
                    owners.append((tip.score, 0))
        return where, owners

    def complete(self, target: Target) -> None:
        """Takes a fed target out; bills each waiting job for what it found in the KV cache instead of running it."""
        del self.targets[target.tip]
        end = target.tip.end
        new = min(target.num_new, end)  # more, if a tip was dropped half-fed
        for job in target.samples:
            job.branch.ledger.add("cached", end - new)
            new = 0
        for job in target.feeds:
            job.tip.ledger.add("cached", end - new)
            new = 0

    def finish(self, target: Target, logits: torch.Tensor | None) -> None:
        """Ends the feed jobs of a complete target; `logits` are those of its last token, where somebody asked."""
        for job in target.feeds:
            if job.request.wants_logits:
                job.request.logits[job.index] = logits.clone()
            if job.steps:
                job.request.scores[job.index] = [tip.score[0] for tip in job.steps]
            job.branch.job = None
            job.request.num_left -= 1


def _num_logits(piece: Piece) -> int:
    return int(piece.is_complete and piece.target.wants_logits)


def _num_scores(target: Target, first: int, count: int) -> int:
    """How many of the positions first .. first + count - 1 go through the score head."""
    return sum(first <= position < first + count for job in target.feeds for position in job.score_at)


def _is_scored(tip: Tip, first: int, count: int) -> bool:
    """Whether the positions first .. first + count - 1 of a step end with the one where it is still to be scored."""
    return tip.score is not None and tip.score[0] is None and first + count == tip.end


class _Reservation:
    """The pieces of one tick as they are put together.

    Whole tips whose origin has been fed, as most are, are grouped and reserved with few calls of the
    tree; if they do not fit, and for all other tips, it is done one by one.
    """

    def __init__(self, feeding: Feeding, budget: int, is_alone: bool):
        self.feeding, self.store = feeding, feeding.store
        self.budget = budget  # tokens
        self.is_alone = is_alone
        self.pieces: list[Piece] = []
        self.group: list[Target] = []
        self.busy: set[Tip] = set()  # must keep their KV

    def add(self, target: Target) -> None:
        """Reserves a target, or puts it into the group that is reserved next."""
        tip = target.tip
        count = len(tip.tokens) - tip.num_fed
        is_origin_fed = tip.origin.is_fed if tip.origin is not None else tip.is_resident
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
        tips = [target.tip for target in group]
        self.store.fork_all([tip for tip in tips if not tip.is_resident])
        runs = [tip.tokens[tip.num_fed :] if tip.num_fed else tip.tokens for tip in tips]
        counts = [len(run) for run in runs]
        try:
            self.store.tree.extend(
                np.array([tip.handle for tip in tips], np.int32),
                np.array(counts, np.int32),
                np.array([token for run in runs for token in run], np.int32),
            )
        except OutOfBlocks:
            self.budget += sum(counts)
            for target in group:
                if self.budget > 0:
                    self.reserve(target)
            return
        for target, tip, count in zip(group, tips, counts, strict=True):
            self.busy.add(tip)
            if tip.origin is not None:
                self.busy.add(tip.origin)
            self.pieces.append(Piece(target, tip.handle, count, [(tip, tip.start + tip.num_fed, count)], True))
            tip.num_fed += count
            target.num_new += count

    def reserve(self, target: Target) -> None:
        """Reserves what fits of a target and of the tips before it."""
        if target.tip not in self.feeding.targets:
            return  # nobody waits for it any more: an earlier one's request has failed
        chain = target.tip.chain()
        if not chain:
            self.busy.add(target.tip)
            self._append(Piece(target, target.tip.handle, 1, [], True, is_stored=False))
            return
        self.busy.update(chain)
        if chain[0].origin is not None:
            self.busy.add(chain[0].origin)
        piece = Piece(target, -1, 0, [], False)
        for tip in chain:
            if not tip.is_resident:
                self.store.make_resident(tip)
            count = min(self.budget - piece.num_tokens, len(tip.tokens) - tip.num_fed)
            if count and not self._extend(tip, count, must_free=self._is_first and not piece.num_tokens):
                break
            piece.handle = tip.handle
            piece.num_tokens += count
            piece.runs.append((tip, tip.start + tip.num_fed, count))
            tip.num_fed += count
            if not tip.is_fed:
                break
        piece.is_complete = target.tip.is_fed
        target.num_new += piece.num_tokens
        if piece.num_tokens:
            self._append(piece)
        elif self._is_first:
            num_blocks = self.store.tree.num_blocks
            error = PoolTooSmall(f"a branch of {target.tip.end} tokens does not fit the {num_blocks} KV blocks")
            for request in {job.request for job in (*target.samples, *target.feeds)}:
                self.feeding.fail(request, error)

    @property
    def _is_first(self) -> bool:
        """Whether nothing at all would go on without the next piece."""
        return self.is_alone and not self.pieces

    def _append(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.budget -= piece.num_tokens

    def _extend(self, tip: Tip, count: int, must_free: bool) -> bool:
        """Reserves slots for a tip's next tokens; frees idle branches only if nothing else would go on."""
        tokens = np.array(tip.tokens[tip.num_fed : tip.num_fed + count], np.int32)
        while True:
            try:
                self.store.tree.extend(np.array([tip.handle], np.int32), np.array([count], np.int32), tokens)
                return True
            except OutOfBlocks:
                if not must_free or not self.feeding.make_room(self.busy, True):
                    return False
