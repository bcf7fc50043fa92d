"""A language model with its KV pool: live sequences that fork. Searches are built on it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from engine.accounting import Ledger
from engine.errors import UserError
from engine.keys import branch_key
from engine.model import (
    Checkpoint,
    Decoder,
    LMHead,
    ModelConfig,
    Placement,
    ScoreHead,
    classification_head,
    load_checkpoint,
    resolve_device,
    resolve_dtype,
    resolve_folder,
)
from engine.runtime.branch import Branch
from engine.runtime.checks import check_branches, check_prompt, check_runs, token_limits
from engine.runtime.executors.base import ModelParts
from engine.runtime.kv import KVPool
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
from engine.types import Sampling

GPU_CHUNK = 4096  # tokens of prompts and steps in one forward

HeadMaker = Callable[[ModelConfig, Mapping[str, torch.Tensor]], ScoreHead]


class LLM:
    """One model with its KV pool. Everything that is queued runs in batches over all that is pending.

    `generate`, `append` and `next_logits` return when their work is done. The `queue_` methods, for callers that drive
    several requests, return a request at once; its results are there when it is done.
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

    def add_end_token(self, token_id: int) -> None:
        """One more token that ends a text, such as a chat's end of turn; before anything is generated."""
        known = self.config.eos_token_ids
        if token_id not in known:
            self.config = replace(self.config, eos_token_ids=(*known, token_id))
            self.runner.stops.set_eos([token_id])

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | Placement = "cpu",  # "cpu" or "cuda"
        dtype: str = "float32",  # or "bfloat16"; on a GPU also "float16"
        trunk_head: ScoreHead | None = None,  # a score head on the policy's trunk, on the device already
        max_batch: int | None = None,  # branches of one forward; None: what is fastest for the model
        num_blocks: int | None = None,  # KV blocks of 16 tokens; None: 1 GiB on a CPU, most of a GPU's free memory
        architecture: str | None = None,  # what the trunk is read as; None: as config.json says
        make_head: HeadMaker | None = None,  # makes a verifier of any folder: its score head from config and tensors
    ) -> LLM:
        """Loads a causal LM, or a step verifier (`*ForTokenClassification`), from a Hugging Face folder."""
        placement = device if isinstance(device, Placement) else resolve_device(device)
        torch_dtype = resolve_dtype(dtype, placement.device.type)
        checkpoint = load_checkpoint(resolve_folder(folder), torch_dtype, architecture, placement.device)
        config, tensors = checkpoint.config, checkpoint.tensors
        if make_head is None and config.num_labels > 0:
            make_head = classification_head
        decoder = Decoder(config, tensors, placement=placement)
        parts = ModelParts(
            decoder,
            lm_head=None if make_head else LMHead(config, tensors, placement=placement),
            pool=KVPool.allocate(config, torch_dtype, num_blocks, placement.device),
            score_head=make_head(config, tensors) if make_head else trunk_head,
        )
        runner = Runner(
            parts,
            max_batch=max_batch if max_batch is not None else decoder.best_batch,
            max_chunk=1024 if placement.device.type == "cpu" else GPU_CHUNK,
        )
        return cls(checkpoint, runner)

    # -- the model -------------------------------------------------------------------------

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
    def free_share(self) -> float:
        """The share of the KV blocks that are free, or that hold only cached prefixes of closed branches."""
        tree = self.runner.tree
        return (tree.num_free_blocks + tree.num_cached_blocks) / tree.num_blocks

    def clear_cache(self) -> None:
        """Forgets the cached prefixes of closed branches."""
        self.runner.tree.clear_cache()

    def encode(self, text: str, *, is_start: bool = True) -> list[int]:
        """Token ids; special tokens that the tokenizer puts at the start of a text only if `is_start`."""
        return self.vocabulary.encode(text, is_start=is_start)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.vocabulary.decode(token_ids)

    def stop_rule(self, stop: Sequence[str]) -> int:
        """The number of the rule that stops at these texts and at the end of text.

        Raises UserError for a text that no single token contains.
        """
        key = tuple(stop)
        if key not in self._stop_rules:
            self._stop_rules[key] = self.runner.stops.add(self.vocabulary.token_mask(key))
        return self._stop_rules[key]

    def read_trunk_head_at(self, mask: np.ndarray) -> None:
        """From now on the trunk head reads at generated tokens of this mask, (vocabulary,) bool, and at end of text."""
        self.runner.stops.score_at(mask)

    # -- branches --------------------------------------------------------------------------

    def open(
        self,
        prompt: str | Sequence[int],
        *,
        ledger: Ledger | None = None,
        purpose: str = "prefilled",
        is_shared: bool = False,
    ) -> Branch:
        """A branch that holds the prompt; its longest cached prefix is not computed again.

        With `is_shared`, open branches that were opened so with the same prompt share their steps: those that
        `queue_append_steps` appends to several of them are computed and scored once.

        Raises UserError for an empty prompt, a token outside the vocabulary, or more tokens than
        the context holds.
        """
        tokens = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        check_prompt(prompt, tokens, self.config)
        ledger = Ledger() if ledger is None else ledger
        fields = {"ledger": ledger, "purpose": purpose, "age": next(self._ages)}
        segment = self.store.root(tokens, **fields) if is_shared else self.store.new(None, tokens, **fields)
        return Branch(self, segment, ledger)

    def generate(
        self,
        branches: Sequence[Branch],
        *,
        stop: Sequence[str] = (),
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> list[GeneratedTokens]:
        """Samples onto each branch until a stop text, the end of text, or `max_tokens`.

        The draws depend on `seed`, the branch's prompt and its address alone.
        """
        prompts = {segment: self.decode(segment.token_ids()) for segment in {branch.segment for branch in branches}}
        keys = [branch_key(seed, prompts[branch.segment], branch.address) for branch in branches]
        request = self.queue_generate(branches, keys, sampling=sampling, stop=stop, max_tokens=max_tokens)
        self.run(request)
        return request.results

    def append(self, branches: Sequence[Branch], tokens: Sequence[Sequence[int]], *, is_lazy: bool = False) -> None:
        """Appends given tokens to each branch.

        With `is_lazy` nothing runs now: the tokens are computed in the next forward that needs them.
        Raises UserError as `open` does, with nothing changed.
        """
        if not is_lazy:
            self.run(self.queue_append(branches, tokens))
            return
        check_branches(branches, self)
        check_runs(branches, [[new] for new in tokens], self.runner)
        for branch, new in zip(branches, tokens, strict=True):
            if len(new):
                branch.segment.is_finished = False  # its KV is needed again
                self._append_segment(branch, new, "prefilled")

    def next_logits(self, branches: Sequence[Branch]) -> torch.Tensor:
        """(branches, vocabulary) float32: the logits after each branch's last token. Changes nothing."""
        if not self.has_lm_head:
            raise UserError(f"the model at {self.folder} has no LM head")
        check_branches(branches, self)
        for branch in branches:
            self.runner.check_fit(branch.segment)
        request = PrefillRequest(self.runner, len(branches), wants_logits=True, logits=[None] * len(branches))
        for index, branch in enumerate(branches):
            self.runner.submit_prefill(PrefillJob(request, index, branch, branch.segment))
        self.run(request)
        if not request.logits:
            return torch.empty(0, self.config.vocab_size)
        return torch.stack(request.logits)

    def run(self, request: Request) -> None:
        """Ticks until the request is done; raises its error."""
        while not request.is_done:
            assert self.runner.has_work, "a request is waiting for nothing"
            self.runner.tick(MAX_FORWARDS)
        if request.error is not None:
            raise request.error

    # -- queued forms ----------------------------------------------------------------------

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
        check_branches(branches, self)
        limits = token_limits(branches, max_tokens, self.runner)
        request = GenerateRequest(
            self.runner,
            len(branches),
            branches=branches,
            sampling=sampling or Sampling(),
            stop=stop if isinstance(stop, StopCondition) else StopCondition(self.stop_rule(stop)),
            purpose=purpose,
            results=[None] * len(branches),
        )
        for index, (branch, limit, key) in enumerate(zip(branches, limits, keys, strict=True)):
            if limit < 1:  # the context is full: nothing can be sampled
                request.results[index] = GeneratedTokens((), (), "length", {})
                request.num_left -= 1
                continue
            segment = branch.segment
            priority = 0.0 if priorities is None else priorities[index]
            segment.priority = max(segment.priority, priority)
            signed_key = key - (1 << 64) if key >> 63 else key
            job = GenerateJob(request, index, branch, signed_key, limit, priority, segment.age, segment)
            self.runner.submit_generate(job)
        return request

    def queue_append(
        self,
        branches: Sequence[Branch],
        tokens: Sequence[Sequence[int]],
        *,
        score_at: Sequence[Sequence[int]] | None = None,  # indices into each branch's new tokens
        purpose: str = "prefilled",  # entry of the ledger that pays
    ) -> PrefillRequest:
        """Queues given tokens for each branch; the request's `scores` are read by the score head at `score_at`.

        Raises UserError (PoolTooSmall is one) with nothing queued.
        """
        check_branches(branches, self)
        check_runs(branches, [[new] for new in tokens], self.runner)
        score_at = [()] * len(branches) if score_at is None else score_at
        request = PrefillRequest(self.runner, len(branches), scores=[[math.nan] * len(at) for at in score_at])
        for index, (branch, new, at) in enumerate(zip(branches, tokens, score_at, strict=True)):
            if not len(new):
                request.num_left -= 1
                continue
            segment = self._append_segment(branch, new, purpose)
            positions = [segment.start + each for each in at]
            self.runner.submit_prefill(PrefillJob(request, index, branch, segment, positions))
        return request

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
        check_branches(branches, self)
        check_runs(branches, steps, self.runner)
        request = PrefillRequest(self.runner, len(branches), scores=[[] for _ in branches])
        for index, (branch, new) in enumerate(zip(branches, steps, strict=True)):
            segments = [self._append_step(branch, step, purpose) for step in new]
            if any(segment.score[0] is None for segment in segments):
                self.runner.submit_prefill(PrefillJob(request, index, branch, branch.segment, steps=segments))
                continue
            branch.ledger.add("cached", branch.num_tokens if segments else 0)
            request.scores[index] = [segment.score[0] for segment in segments]
            request.num_left -= 1
        return request

    def _append_segment(self, branch: Branch, tokens: Sequence[int], purpose: str) -> Segment:
        """Has the branch end with a new segment, which is not computed yet."""
        old = branch.segment
        branch.segment = self.store.new(old, list(tokens), ledger=branch.ledger, purpose=purpose, age=old.age)
        self.store.release(old)
        return branch.segment

    def _append_step(self, branch: Branch, tokens: Sequence[int], purpose: str) -> Segment:
        """Has the branch end with the segment of a scored step, which other branches may share."""
        old = branch.segment
        branch.segment = self.store.step(old, list(tokens), ledger=branch.ledger, purpose=purpose, age=old.age)
        self.store.release(old)
        return branch.segment
