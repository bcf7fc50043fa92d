"""Work for a model, queued: extensions of branches, given tokens, scores. `LLM` is built on it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

from engine.counts import check_real, shown
from engine.errors import UserError
from engine.interrupts import Uninterrupted
from engine.model import Checkpoint
from engine.runtime.branch import Branch
from engine.runtime.checks import (
    as_ints,
    check_branches,
    check_each,
    check_places,
    check_purpose,
    check_steps,
    check_tokens,
    checked_runs,
    signed_keys,
    token_limits,
)
from engine.runtime.one_thread import OneThread
from engine.runtime.requests import (
    GeneratedTokens,
    GenerateJob,
    GenerateRequest,
    PrefillJob,
    PrefillRequest,
    Request,
    StopCondition,
)
from engine.runtime.runner import MAX_FORWARDS, Runner
from engine.runtime.segments import Segment, SegmentStore
from engine.runtime.vocabulary import Vocabulary
from engine.types import Sampling, as_sampling


class RequestQueue:
    """One model, and what queues work for its runner.

    Everything is checked before anything is queued: a call that raises has changed nothing.
    """

    def __init__(self, checkpoint: Checkpoint, runner: Runner):
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.folder = checkpoint.folder
        self.vocabulary = Vocabulary(checkpoint.tokenizer, checkpoint.config.vocab_size)
        self.runner = runner
        self._ages = itertools.count()
        self._stop_rules: dict[tuple[str, ...], int] = {}
        runner.stops.set_eos(list(self.config.eos_token_ids))

    @property
    def has_lm_head(self) -> bool:
        """Whether it can generate; a verifier cannot."""
        return self.runner.parts.lm_head is not None

    @property
    def has_score_head(self) -> bool:
        """Whether it can score: a verifier, or a policy with a trunk head."""
        return self.runner.parts.score_head is not None

    @property
    def store(self) -> SegmentStore:
        """The segments of its branches."""
        return self.runner.store

    @property
    def in_use(self) -> OneThread:
        """Held while it works or changes: a second thread that comes then gets a UserError."""
        return self.runner.in_use

    def stop_rule(self, stop: Sequence[str]) -> int:
        """The number of the rule that stops at these texts and at the end of text.

        Raises UserError for a text that no single token contains, and for what is no list of texts.
        """
        if isinstance(stop, str) or not isinstance(stop, Collection) or not all(isinstance(each, str) for each in stop):
            raise UserError(f"stop must be a list of texts, got {shown(stop)}")
        key = tuple(stop)
        if key not in self._stop_rules:
            self._stop_rules[key] = self.runner.stops.add(self.vocabulary.token_mask(key))
        return self._stop_rules[key]

    def run(self, request: Request) -> None:
        """Ticks until the request is done; raises its error.

        Whatever else is raised meanwhile takes the request back. Ctrl-C waits for the end of a tick.
        """
        uninterrupted = Uninterrupted()
        try:
            while not request.is_done:
                assert self.runner.has_work, "a request is waiting for nothing"
                with uninterrupted:
                    self.runner.tick(MAX_FORWARDS)
        except BaseException as error:
            with self.in_use.after_others():
                self.runner.fail(request, error)
            raise
        if request.error is not None:
            raise request.error

    def queue_generate(
        self,
        branches: Sequence[Branch],
        keys: Sequence[int],  # 64-bit random stream of each branch
        *,
        max_tokens: int | Sequence[int],  # new tokens, at least 1: one limit for all, or one per branch
        sampling: Sampling | None = None,
        stop: Sequence[str] | StopCondition = (),
        purpose: str = "generated",  # entry of the ledger that pays
        priorities: Sequence[float] | None = None,  # the lowest is suspended first when the KV pool is full
    ) -> GenerateRequest:
        """Queues an extension of each branch.

        Raises UserError (PoolTooSmall is one) with nothing queued.
        """
        if not self.has_lm_head:
            raise UserError(f"the model at {self.folder} has no LM head to sample from")
        check_each(branches, keys=keys, priorities=priorities)
        check_purpose(purpose)
        keys = signed_keys(keys)
        ranks = [0.0] * len(branches) if priorities is None else [check_real("a priority", each) for each in priorities]
        with self.in_use:
            check_branches(branches, self)
            limits = token_limits(branches, max_tokens, self.runner)
            request = GenerateRequest(
                self.runner,
                len(branches),
                branches=branches,
                sampling=as_sampling(sampling),
                stop=self._stop_condition(stop),
                purpose=purpose,
                results=[None] * len(branches),
            )
            for index, (branch, limit, key, rank) in enumerate(zip(branches, limits, keys, ranks, strict=True)):
                self._queue_branch(request, index, branch, limit, key, rank)
        return request

    def _stop_condition(self, stop: Sequence[str] | StopCondition) -> StopCondition:
        if not isinstance(stop, StopCondition):
            return StopCondition(self.stop_rule(stop))
        if not 0 <= stop.rule < len(self.runner.stops.table):
            raise UserError(f"a stop rule must be one that was added, got {stop.rule}")
        return stop

    def _queue_branch(
        self, request: GenerateRequest, index: int, branch: Branch, limit: int, key: int, priority: float
    ) -> None:
        """Queues one branch of a request, unless its context is full."""
        if limit < 1:
            request.results[index] = GeneratedTokens((), (), "length", {})
            request.num_left -= 1
            return
        segment = branch.segment
        segment.priority = max(segment.priority, priority)
        self.runner.submit_generate(GenerateJob(request, index, branch, key, limit, priority, segment.age, segment))

    def queue_append(
        self,
        branches: Sequence[Branch],
        tokens: Sequence[Sequence[int]],
        *,
        score_at: Sequence[Sequence[int]] | None = None,  # indices into each branch's new tokens
        next_tokens: Sequence[Sequence[int]] | None = None,  # a token after each of a branch's new tokens
        purpose: str = "prefilled",  # entry of the ledger that pays
    ) -> PrefillRequest:
        """Queues given tokens for each branch; the request's `scores` are read by the score head at `score_at`.

        Its `logprobs` are those of `next_tokens`, each after the new token of its index.
        Raises UserError (PoolTooSmall is one) with nothing queued.
        """
        check_each(branches, tokens=tokens, score_at=score_at, next_tokens=next_tokens)
        check_purpose(purpose)
        places = [[] for _ in branches] if score_at is None else [as_ints("score_at", at) for at in score_at]
        if any(places):
            self._check_scores()
        with self.in_use:
            check_branches(branches, self)
            runs = checked_runs(branches, [[new] for new in tokens], self.runner)
            check_places(places, runs)
            nexts = self._checked_next(runs, next_tokens)
            request = PrefillRequest(self.runner, len(branches), scores=[[math.nan] * len(at) for at in places])
            request.logprobs = [[None] * len(wanted) for wanted in nexts]
            for index, (branch, (new,), at, wanted) in enumerate(zip(branches, runs, places, nexts, strict=True)):
                if not new:
                    request.num_left -= 1
                    continue
                segment = self._append_segment(branch, new, purpose)
                positions = [segment.start + each for each in at]
                self.runner.submit_prefill(PrefillJob(request, index, branch, segment, positions, wanted))
        return request

    def _checked_next(
        self, runs: Sequence[Sequence[Sequence[int]]], next_tokens: Sequence[Sequence[int]] | None
    ) -> list[list[int]]:
        """The tokens whose log-probabilities are wanted, as ints. Raises UserError where there is not one for each."""
        if next_tokens is None:
            return [[] for _ in runs]
        if not self.has_lm_head:
            raise UserError(f"the model at {self.folder} has no LM head")
        nexts = [as_ints("next_tokens", wanted) for wanted in next_tokens]
        check_tokens([token for wanted in nexts for token in wanted], self.config)
        for wanted, (new,) in zip(nexts, runs, strict=True):
            if len(wanted) != len(new):
                raise UserError(f"next_tokens must have one for each of {len(new)} new tokens, got {len(wanted)}")
        return nexts

    def queue_append_steps(
        self,
        branches: Sequence[Branch],
        steps: Sequence[Sequence[Sequence[int]]],  # tokens of each step of each branch, none of them empty
        *,
        purpose: str = "verified",  # entry of the ledger that pays
    ) -> PrefillRequest:
        """Queues given steps for each branch; the request's `scores` are read at the last token of every step.

        A step that an open branch already has after the same segment is neither computed nor scored again.
        Raises UserError (PoolTooSmall is one) with nothing queued.
        """
        check_purpose(purpose)
        self._check_scores()
        with self.in_use:
            check_branches(branches, self)
            runs = checked_runs(branches, steps, self.runner)
            check_steps(runs)
            request = PrefillRequest(self.runner, len(branches), scores=[[] for _ in branches])
            for index, (branch, new) in enumerate(zip(branches, runs, strict=True)):
                segments = [self._append_step(branch, step, purpose) for step in new]
                if any(segment.score[0] is None for segment in segments):
                    self.runner.submit_prefill(PrefillJob(request, index, branch, branch.segment, steps=segments))
                    continue
                branch.ledger.add("cached", branch.num_tokens if segments else 0)
                request.scores[index] = [segment.score[0] for segment in segments]
                request.num_left -= 1
        return request

    def _check_scores(self) -> None:
        if not self.has_score_head:
            raise UserError(f"the model at {self.folder} has no score head")

    def _append_segment(self, branch: Branch, tokens: list[int], purpose: str) -> Segment:
        """Has the branch end with a new segment, which is not computed yet."""
        old = branch.segment
        branch.segment = self.store.new(old, tokens, ledger=branch.ledger, purpose=purpose, age=old.age)
        self.store.release(old)
        return branch.segment

    def _append_step(self, branch: Branch, tokens: list[int], purpose: str) -> Segment:
        """Has the branch end with the segment of a scored step, which other branches may share."""
        old = branch.segment
        branch.segment = self.store.step(old, tokens, ledger=branch.ledger, purpose=purpose, age=old.age)
        self.store.release(old)
        return branch.segment
