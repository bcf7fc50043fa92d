"""One model at work: every tick is one forward over whatever any problem has pending."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.accounting import forward_flops
from engine.model import Decoder, LMHead, ScoreHead
from engine.runtime.kv import KVPool
from engine.runtime.memory import PoolTooSmall, free_some
from engine.runtime.requests import FeedJob, FeedRequest, Sampled, SampleJob, SampleRequest
from engine.runtime.rows import Rows
from engine.runtime.tips import Tip, TipStore
from ttc_kernels._native import OutOfBlocks
from ttc_kernels.sample import sample
from ttc_kernels.step_score import step_score

_ONE = np.ones(1, np.int32)


@dataclass(eq=False)
class Target:
    """A tip to be fed, and who waits for it: rows to be sampled from its logits, feed jobs."""

    tip: Tip
    rows: list[int] = field(default_factory=list)
    feeds: list[FeedJob] = field(default_factory=list)
    num_new: int = 0  # tokens fed for it so far

    @property
    def wants_logits(self) -> bool:
        return bool(self.rows) or any(job.request.wants_logits for job in self.feeds)


@dataclass
class Piece:
    """What one tick feeds of a target."""

    target: Target
    handle: int
    tokens: list[int]
    runs: list[tuple[Tip, int, int]]  # tip, first position, number of tokens
    is_complete: bool
    is_stored: bool  # False: the last token's KV is there already, only its logits are asked for


@dataclass
class Batch:
    """One forward's branches: the decoding rows first, then the pieces."""

    decode: np.ndarray  # row indices
    pieces: list[Piece]
    first_row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # of each branch, in the plan
    last_row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class Runner:
    """Batches the requests of one model and runs them; not thread-safe.

    `max_rows` bounds the branches sampled in one forward, `max_chunk` the tokens fed beside them.
    Neither changes a result.
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
            raise ValueError(f"batch limits must be at least 1, got {max_rows} rows and {max_chunk} tokens")
        self.decoder, self.pool, self.tree = decoder, pool, pool.tree
        self.lm_head, self.score_head = lm_head, score_head
        self.shape = decoder.config.shape(lm_head is not None)
        self.store = TipStore(self.tree)
        self.rows = Rows(max_rows)
        self.max_chunk = max_chunk
        self.queue: deque[SampleJob] = deque()
        self.suspended: list[SampleJob] = []
        self.targets: dict[Tip, Target] = {}
        self.stop_rules: list[np.ndarray] = []  # (vocabulary,) bool each
        self.eos_mask = np.zeros(decoder.config.vocab_size, bool)
        self.score_mask: np.ndarray | None = None  # tokens at which the trunk head is read
        self.num_ticks = self.num_suspensions = 0

    # -- requests ---------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self.queue or self.suspended or self.targets or self.rows.num_used)

    @property
    def num_waiting_rows(self) -> int:
        return self.rows.num_used + len(self.queue) + len(self.suspended)

    @property
    def num_feed_tokens(self) -> int:
        """Tokens that feed jobs have still to run, prompts apart."""
        return sum(len(t.tip.tokens) - t.tip.num_fed for t in self.targets.values())

    def submit_sample(self, job: SampleJob) -> None:
        """Queues a branch for sampling. Raises PoolTooSmall for one that could never fit."""
        self.check_fit(job.source, job.max_tokens)
        job.branch.job = job
        self.queue.append(job)

    def submit_feed(self, job: FeedJob) -> None:
        """Queues a tip for feeding. Raises PoolTooSmall for one that could never fit."""
        self.check_fit(job.tip, 0)
        job.branch.job = job
        self._target(job.tip).feeds.append(job)

    def check_fit(self, tip: Tip, num_more: int) -> None:
        """Raises PoolTooSmall if a branch of this length cannot live in the pool even alone."""
        size, needed, last = self.pool.v.shape[3], -(-num_more // self.pool.v.shape[3]), tip
        while last is not None:
            needed += -(-len(last.tokens) // size)
            last = last.origin
        if needed > self.tree.num_blocks:
            raise PoolTooSmall(
                f"a branch of {tip.end + num_more} tokens needs {needed} KV blocks, the pool has {self.tree.num_blocks}"
            )

    def cancel(self, job: SampleJob) -> None:
        """Takes a job out, wherever it is; its branch is being closed."""
        if job in self.queue:
            self.queue.remove(job)
        elif job in self.suspended:
            self.suspended.remove(job)
        else:
            row = self.rows.jobs.index(job)
            if self.rows.is_decoding[row]:
                job.partial = self.rows.tips[row]
            else:
                self._leave_target(job.source, row)
            self.rows.remove(row)
        self.store.release(job.partial)
        job.branch.job = None

    def cancel_feed(self, job: FeedJob) -> None:
        """Takes a waiting feed job out; its branch is being closed, or its request has failed."""
        target = self.targets[job.tip]
        target.feeds.remove(job)
        self._drop_if_idle(target)
        job.branch.job = None

    def _leave_target(self, tip: Tip, row: int) -> None:
        self.targets[tip].rows.remove(row)
        self._drop_if_idle(self.targets[tip])

    def _drop_if_idle(self, target: Target) -> None:
        if not target.rows and not target.feeds:
            del self.targets[target.tip]

    def _target(self, tip: Tip) -> Target:
        return self.targets.setdefault(tip, Target(tip))

    # -- one tick ---------------------------------------------------------------------------

    def tick(self) -> None:
        """One forward pass; finishes whatever it completes."""
        self._resume()
        while self.queue and self.rows.num_free:
            job = self.queue.popleft()
            self._target(job.source).rows.append(self.rows.add(job))
        batch = Batch(self._reserve_decode(), [])
        batch.pieces = self._reserve_pieces(is_alone=len(batch.decode) == 0)
        if len(batch.decode) == 0 and not batch.pieces:
            return
        self.num_ticks += 1
        hidden = self._forward(batch)
        self._bill_pieces(batch)
        self._read_scores(batch, hidden)
        self._draw(batch, hidden)

    def _reserve_decode(self) -> np.ndarray:
        """Appends the pending tokens of all decoding rows to the tree, suspending rows if it is full."""
        rows = self.rows
        while True:
            decode = np.flatnonzero(rows.is_decoding)
            if len(decode) == 0:
                return decode
            try:
                self.tree.extend(rows.handle[decode], np.ones(len(decode), np.int32), rows.pending[decode])
                return decode
            except OutOfBlocks as error:
                if not free_some(self, busy=frozenset(), may_suspend=len(decode) > 1):
                    self.fail(rows.jobs[decode[0]].request, PoolTooSmall(str(error)))

    def _reserve_pieces(self, is_alone: bool) -> list[Piece]:
        """What to feed in this tick, the oldest problem's first, within the chunk limit.

        A tip comes before those that start from it: each is then the end of one piece at most, and
        none is fed as a part of another's piece only to be read again for its own logits.
        """
        pieces: list[Piece] = []
        budget = self.max_chunk
        busy: set[Tip] = set()
        for target in sorted(self.targets.values(), key=lambda target: (target.tip.age, target.tip.start)):
            if budget <= 0:
                break
            if target.tip not in self.targets:
                continue  # nobody waits for it any more: an earlier one's request has failed
            piece = self._reserve_piece(target, budget, busy, is_alone and not pieces)
            if piece is not None:
                pieces.append(piece)
                budget -= len(piece.tokens)
        return pieces

    def _reserve_piece(self, target: Target, budget: int, busy: set[Tip], is_alone: bool) -> Piece | None:
        chain = target.tip.chain()
        if not chain:
            busy.add(target.tip)
            return Piece(target, target.tip.handle, target.tip.tokens[-1:], [], True, False)
        busy.update(chain)
        if chain[0].origin is not None:
            busy.add(chain[0].origin)
        piece = Piece(target, -1, [], [], False, True)
        for tip in chain:
            if not tip.is_resident:
                self.store.make_resident(tip)
            count = min(budget - len(piece.tokens), len(tip.tokens) - tip.num_fed)
            tokens = tip.tokens[tip.num_fed : tip.num_fed + count]
            if count and not self._extend(tip, tokens, busy, is_alone and not piece.tokens):
                break
            piece.handle = tip.handle
            piece.tokens += tokens
            piece.runs.append((tip, tip.start + tip.num_fed, count))
            tip.num_fed += count
            if not tip.is_fed:
                break
        piece.is_complete = target.tip.is_fed
        target.num_new += len(piece.tokens)
        if is_alone and not piece.tokens:
            error = PoolTooSmall(
                f"a branch of {target.tip.end} tokens does not fit the {self.tree.num_blocks} KV blocks"
            )
            for request in {self.rows.jobs[row].request for row in target.rows} | {job.request for job in target.feeds}:
                self.fail(request, error)
        return piece if piece.tokens else None

    def _extend(self, tip: Tip, tokens: list[int], busy: set[Tip], must_free: bool) -> bool:
        """Reserves slots for tokens of a tip; frees idle branches only if nothing else would go on."""
        while True:
            try:
                self.tree.extend(np.array([tip.handle], np.int32), _ONE * len(tokens), np.array(tokens, np.int32))
                return True
            except OutOfBlocks:
                if not must_free or not free_some(self, busy=busy, may_suspend=True):
                    return False

    def _forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states of all rows; fills in which rows belong to which branch."""
        rows, pieces, num_decode = self.rows, batch.pieces, len(batch.decode)
        handles = np.concatenate([rows.handle[batch.decode], np.array([p.handle for p in pieces], np.int32)])
        queries = np.ones(len(handles), np.int32)
        queries[num_decode:] = [len(p.tokens) for p in pieces]
        given = np.concatenate([rows.pending[batch.decode], *(np.array(p.tokens, np.int32) for p in pieces)])
        plan = self.tree.plan(handles, queries)
        order, row_start = plan.order, plan.row_start
        starts = np.cumsum(queries) - queries
        batch.first_row = np.empty(len(handles), np.int64)
        batch.last_row = np.empty(len(handles), np.int64)
        batch.first_row[order] = row_start[:-1]
        batch.last_row[order] = row_start[1:] - 1
        gather = np.repeat(starts[order] - row_start[:-1], queries[order]) + np.arange(len(given))
        slots = plan.slots
        unstored = [num_decode + i for i, piece in enumerate(pieces) if not piece.is_stored]
        if unstored:
            slots = slots.copy()
            slots[batch.last_row[unstored]] = -1
        return self.decoder.forward(
            torch.from_numpy(given[gather]),
            plan,
            torch.from_numpy(plan.positions),
            torch.from_numpy(slots),
            self.pool.k,
            self.pool.v,
        )

    # -- feeding ----------------------------------------------------------------------------

    def _bill_pieces(self, batch: Batch) -> None:
        for piece in batch.pieces:
            for tip, first, count in piece.runs:
                again = min(max(tip.max_fed - (first - tip.start), 0), count)
                tip.ledger.add("recomputed", again, forward_flops(self.shape, first, again, 0))
                new = count - again
                num_heads = self._num_head_rows(piece, first, count) if tip is piece.target.tip else 0
                flops = forward_flops(self.shape, first + again, new, num_heads)
                tip.ledger.add(tip.purpose, 0 if tip.is_counted else new, flops)
                tip.max_fed = max(tip.max_fed, tip.num_fed)
            if not piece.is_stored:
                tip = piece.target.tip
                tip.ledger.add("recomputed", 1, forward_flops(self.shape, tip.end - 1, 1))

    def _num_head_rows(self, piece: Piece, first: int, count: int) -> int:
        """How many of the target's positions first .. first + count - 1 go through the head."""
        if self.lm_head is not None:
            return int(piece.is_complete and piece.target.wants_logits)
        positions = (position for job in piece.target.feeds for position in job.score_at)
        return sum(first <= position < first + count for position in positions)

    def _read_scores(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Runs the score rows of this tick's pieces through the head, all in one call."""
        where: list[int] = []
        owners: list[tuple[list[float], int]] = []
        for i, piece in enumerate(batch.pieces):
            if not piece.runs:
                continue
            first = piece.runs[0][1]
            row = int(batch.first_row[len(batch.decode) + i])
            for job in piece.target.feeds:
                for at, position in enumerate(job.score_at):
                    if first <= position < first + len(piece.tokens):
                        where.append(row + position - first)
                        owners.append((job.request.scores[job.index], at))
        # By index, not appended: a tip that is dropped half-fed is read again from its start.
        for (scores, at), score in zip(owners, self._scores(hidden, where), strict=True):
            scores[at] = score

    def _scores(self, hidden: torch.Tensor, where: list[int]) -> list[float]:
        if not where:
            return []
        assert self.score_head is not None, "scores were asked of a model without a score head"
        head = self.score_head
        num = len(where)
        scores = step_score(
            hidden,
            torch.tensor(where, dtype=torch.int32),
            head.weight,
            head.bias,
            head.good_index,
            torch.zeros(num, 4),
            torch.zeros(num, dtype=torch.int32),
            torch.arange(num, dtype=torch.int32),
        )
        return scores.tolist()

    def _finish_feeds(self, target: Target, logits: np.ndarray | None) -> None:
        for job in target.feeds:
            if job.request.wants_logits:
                job.request.logits[job.index] = logits
            job.branch.job = None
            job.request.num_left -= 1

    # -- sampling ---------------------------------------------------------------------------

    def _draw(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Samples one token for every decoding row and every row whose source has just been fed."""
        num_decode = len(batch.decode)
        read: list[int] = []  # plan rows whose logits are needed, beyond the decoding ones
        expand: list[int] = []
        started: list[int] = []
        ready: list[tuple[Target, int]] = []
        for i, piece in enumerate(batch.pieces):
            if not piece.is_complete:
                continue
            target = piece.target
            del self.targets[target.tip]
            self._bill_cached(target)
            if target.wants_logits:
                read.append(int(batch.last_row[num_decode + i]))
            ready.append((target, len(read) - 1))
            expand += [num_decode + len(read) - 1] * len(target.rows)
            started += target.rows
        where = np.concatenate([batch.last_row[:num_decode], np.array(read, np.int64)])
        logits = self.lm_head.logits(hidden, torch.from_numpy(where)) if len(where) and self.lm_head else None
        for target, index in ready:
            self._finish_feeds(target, None if logits is None else logits[num_decode + index].numpy())
            self._start_rows(target)
        chosen = np.concatenate([batch.decode, np.array(started, np.int64)])
        if len(chosen):
            pick = np.concatenate([np.arange(num_decode), np.array(expand, np.int64)])
            self._push(chosen, where[pick], logits if not read else logits[torch.from_numpy(pick)], hidden)

    def _push(self, chosen: np.ndarray, where: np.ndarray, logits: torch.Tensor, hidden: torch.Tensor) -> None:
        rows = self.rows
        tokens, logprobs = sample(
            logits,
            *(
                torch.from_numpy(getattr(rows, name)[chosen])
                for name in ("key", "position", "temperature", "top_k", "top_p", "min_p")
            ),
        )
        tokens, logprobs = tokens.numpy(), logprobs.numpy()
        rows.push(chosen, tokens, logprobs)
        is_error = tokens < 0
        if self.score_mask is not None:
            marked = np.flatnonzero(self.score_mask[tokens] & ~is_error)
            for i, score in zip(marked, self._scores(hidden, where[marked].tolist()), strict=True):
                rows.jobs[chosen[i]].trunk_scores.append(score)
        is_eos = self.eos_mask[tokens]
        is_stop = is_eos.copy()
        for rule, mask in enumerate(self.stop_rules):
            is_stop |= mask[tokens] & (rows.rule[chosen] == rule)
        is_full = rows.count[chosen] >= rows.max_count[chosen]
        for i in np.flatnonzero(is_stop | is_full | is_error):
            finish = "error" if is_error[i] else "eos" if is_eos[i] else "step" if is_stop[i] else "length"
            self._finish_row(int(chosen[i]), finish)

    def _bill_cached(self, target: Target) -> None:
        """What each waiting job found in the KV cache instead of running it."""
        new = min(target.num_new, target.tip.end)  # more, if a tip was dropped half-fed
        for ledger in [self.rows.jobs[row].branch.ledger for row in target.rows] + [
            job.tip.ledger for job in target.feeds
        ]:
            ledger.add("cached", target.tip.end - new)
            new = 0

    def _start_rows(self, target: Target) -> None:
        """Gives every waiting row a branch of the tree: a fork of the source, or its own half-made one."""
        rows, tip = self.rows, target.tip
        fresh = [row for row in target.rows if rows.jobs[row].partial is None]
        for row, handle in zip(fresh, self.tree.fork(tip.handle, len(fresh)) if fresh else (), strict=True):
            job = rows.jobs[row]
            rows.tips[row] = self.store.new(
                tip,
                [],
                ledger=job.branch.ledger,
                purpose=job.request.purpose,
                is_counted=True,
                priority=job.priority,
                age=job.age,
            )
            self.store.adopt(rows.tips[row], handle, 0)
        for row in target.rows:
            if (partial := rows.jobs[row].partial) is not None:
                rows.tips[row] = partial
            rows.handle[row] = rows.tips[row].handle
            rows.is_starting[row], rows.is_decoding[row] = False, True

    def _finish_row(self, row: int, finish: str) -> None:
        """Hands a finished extension to its request; the branch now stands at the new tip."""
        rows = self.rows
        job, tip = rows.jobs[row], rows.tips[row]
        tokens = rows.sampled(row)
        logprobs = rows.logprobs[row, : len(tokens)].tolist()
        if finish == "error":
            tokens, logprobs = tokens[:-1], logprobs[:-1]
        self._bill_row(row, tip)
        tip.ledger.add(tip.purpose, len(tokens))
        self.store.adopt(tip, tip.handle, int(rows.count[row]) - 1)
        tip.tokens, tip.is_finished = tokens, finish in ("eos", "error")
        if tokens:
            self.store.release(job.branch.tip)
            job.branch.tip = tip
        else:  # the first token failed: the branch stays where it stood
            self.store.release(tip)
        job.branch.job = None
        job.request.results[job.index] = Sampled(tuple(tokens), tuple(logprobs), finish, tuple(job.trunk_scores))
        job.request.num_left -= 1
        rows.remove(row)

    def _bill_row(self, row: int, tip: Tip) -> None:
        """FLOPs of the tokens that this extension has fed since it was last billed."""
        fed, billed = int(self.rows.count[row]) - 1, int(self.rows.billed[row])
        if fed > billed:
            tip.ledger.add(tip.purpose, 0, forward_flops(self.shape, tip.start + billed, fed - billed))
            self.rows.billed[row] = fed

    # -- memory -----------------------------------------------------------------------------

    def suspend(self, row: int) -> None:
        """Gives up a decoding row's KV; its job waits to be re-computed."""
        rows = self.rows
        job, tip = rows.jobs[row], rows.tips[row]
        self._bill_row(row, tip)
        tip.tokens = rows.sampled(row)
        self.store.adopt(tip, tip.handle, int(rows.count[row]) - 1)
        job.logprobs = rows.logprobs[row, : len(tip.tokens)].tolist()
        job.partial = job.source = tip
        self.store.drop(tip)
        rows.remove(row)
        self.suspended.append(job)
        self.num_suspensions += 1

    def _resume(self) -> None:
        """Queues suspended jobs again while there is room for them beside what runs."""
        self.suspended.sort(key=lambda job: (job.age, -job.priority))
        while self.suspended:
            job = self.suspended[0]
            size = self.pool.v.shape[3]
            needed = sum(1 + -(-len(tip.tokens) // size) for tip in job.source.chain())
            room = self.tree.num_free_blocks + self.tree.num_cached_blocks - self.rows.num_used
            is_idle = not self.queue and not self.targets and not self.rows.num_used
            if needed + 1 > room and not is_idle:
                return
            self.queue.appendleft(self.suspended.pop(0))
            if is_idle:
                return

    def fail(self, request: SampleRequest | FeedRequest, error: Exception) -> None:
        """Ends a request with an error; the search that awaits it gets it, all others go on."""
        request.error = error
        for job in [j for j in (*self.rows.jobs, *self.queue, *self.suspended) if j and j.request is request]:
            self.cancel(job)
        for target in list(self.targets.values()):
            for job in [job for job in target.feeds if job.request is request]:
                self.cancel_feed(job)
