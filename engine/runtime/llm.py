"""Live sequences that fork: the level below searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
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
from engine.runtime.kv import KVPool
from engine.runtime.requests import FeedJob, FeedRequest, Request, Sampled, SampleJob, SampleRequest
from engine.runtime.runner import MAX_FORWARDS, Runner
from engine.types import Sampling

GPU_CHUNK = 4096  # tokens of prompts and steps in one forward

HeadMaker = Callable[[ModelConfig, Mapping[str, torch.Tensor]], ScoreHead]


class LLM:
    """One model with its KV pool. Sampling and feeding run in batches over all that is pending."""

    def __init__(self, checkpoint: Checkpoint, runner: Runner):
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.folder = checkpoint.folder
        self.runner = runner
        self._ages = itertools.count()
        self._rules: dict[tuple[str, ...], int] = {}
        self._token_texts: list[str] | None = None
        runner.stops.set_eos(list(self.config.eos_token_ids))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | Placement = "cpu",
        dtype: str = "float32",
        trunk_head: ScoreHead | None = None,
        max_batch: int | None = None,
        num_blocks: int | None = None,
        architecture: str | None = None,
        make_head: HeadMaker | None = None,
    ) -> LLM:
        """Loads a causal LM, or a step verifier (`*ForTokenClassification`), from a Hugging Face folder.

        `make_head` makes a verifier of any folder: from configuration and tensors to the score head.
        `architecture` says what the trunk is read as (None: as config.json says).
        `max_batch` bounds the branches of one forward (None: what is fastest for the model), `num_blocks` the
        KV pool (blocks of 16 tokens; None: 1 GiB on a CPU, most of a GPU's free memory). `device` is "cpu" or "cuda"
        (the trunk head is on it already), `dtype` "float32", "bfloat16", on a GPU also "float16".
        """
        placement = device if isinstance(device, Placement) else resolve_device(device)
        torch_dtype = resolve_dtype(dtype, placement.device.type)
        checkpoint = load_checkpoint(resolve_folder(folder), torch_dtype, architecture, placement.device)
        config, tensors = checkpoint.config, checkpoint.tensors
        if make_head is None and config.num_labels > 0:
            make_head = classification_head
        decoder = Decoder(config, tensors, placement=placement)
        lm_head = None if make_head else LMHead(config, tensors, placement=placement)
        runner = Runner(
            decoder,
            KVPool.allocate(config, torch_dtype, num_blocks, placement.device),
            lm_head=lm_head,
            score_head=make_head(config, tensors) if make_head else trunk_head,
            max_rows=max_batch if max_batch is not None else decoder.best_batch,
            max_chunk=1024 if placement.device.type == "cpu" else GPU_CHUNK,
        )
        return cls(checkpoint, runner)

    # -- text ------------------------------------------------------------------------------

    def encode(self, text: str, *, is_start: bool = True) -> list[int]:
        """Token ids; special tokens that the tokenizer puts at the start of a text only if `is_start`."""
        return self.tokenizer.encode(text, add_special_tokens=is_start).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    @property
    def token_texts(self) -> list[str]:
        """The text of each token of the vocabulary, alone."""
        if self._token_texts is None:
            self._token_texts = [self.tokenizer.decode([i]) for i in range(self.config.vocab_size)]
        return self._token_texts

    def token_mask(self, texts: Sequence[str]) -> np.ndarray:
        """(vocabulary,) bool: the tokens whose own text contains one of `texts`.

        Raises UserError for a text that no single token contains.
        """
        mask = np.zeros(self.config.vocab_size, bool)
        for text in texts:
            found = [i for i, token in enumerate(self.token_texts) if text and text in token]
            if not found:
                raise UserError(f"no token of the vocabulary contains the stop text {text!r}")
            mask[found] = True
        return mask

    def stop_rule(self, stop: Sequence[str]) -> int:
        """The runner's number for "stop at these texts, and at end of text"."""
        key = tuple(stop)
        if key not in self._rules:
            self._rules[key] = self.runner.stops.add(self.token_mask(key))
        return self._rules[key]

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

        With `is_shared` it stands where other such branches stand that were opened with the same prompt and are
        open: of a verifier, what they append with `append_steps` is read once.

        Raises UserError for an empty prompt, a token outside the vocabulary, or more tokens than
        the context holds.
        """
        tokens = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise UserError(f"the prompt is empty: {prompt!r}")
        if len(tokens) >= self.config.context:
            raise UserError(
                f"the prompt has {len(tokens)} tokens, the context of the model holds {self.config.context}"
            )
        self._check_tokens(tokens)
        ledger = Ledger() if ledger is None else ledger
        fields = {"ledger": ledger, "purpose": purpose, "age": next(self._ages)}
        store = self.runner.store
        segment = store.root(tokens, **fields) if is_shared else store.new(None, tokens, **fields)
        return Branch(self, segment, ledger)

    def extend(
        self,
        branches: Sequence[Branch],
        *,
        stop: Sequence[str] = (),
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> list[Sampled]:
        """Samples onto each branch until a stop text, the end of text, or `max_tokens`.

        The draws depend on `seed`, the branch's prompt and its address alone.
        """
        prompts = {segment: self.decode(segment.token_ids()) for segment in {branch.segment for branch in branches}}
        keys = [branch_key(seed, prompts[branch.segment], branch.address) for branch in branches]
        request = self.sample(branches, keys, sampling or Sampling(), stop, max_tokens)
        self.run(request)
        return request.results

    def feed(self, branches: Sequence[Branch], tokens: Sequence[Sequence[int]]) -> None:
        """Appends given tokens to each branch. Raises UserError as `open` does, with nothing changed."""
        self.run(self.append(branches, tokens))

    def next_logits(self, branches: Sequence[Branch]) -> torch.Tensor:
        """(branches, vocabulary) float32: the logits after each branch's last token. Changes nothing."""
        if self.runner.lm_head is None:
            raise UserError(f"the model at {self.folder} has no LM head")
        self._check_branches(branches)
        for branch in branches:
            self.runner.check_fit(branch.segment, 0)
        request = FeedRequest(self.runner, len(branches), wants_logits=True, logits=[None] * len(branches))
        for index, branch in enumerate(branches):
            self.runner.submit_feed(FeedJob(request, index, branch, branch.segment))
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

    # -- requests, for whoever drives several at once ---------------------------------------

    def sample(
        self,
        branches: Sequence[Branch],
        keys: Sequence[int],
        sampling: Sampling,
        stop: Sequence[str],
        max_tokens: int | Sequence[int],
        purpose: str = "generated",
        priorities: Sequence[float] | None = None,
        rule: int | None = None,
        confirm: Callable[[Branch, list[int]], str | None] | None = None,
    ) -> SampleRequest:
        """Queues an extension of each branch; `results` are there once the request is done.

        `rule` is a rule of the runner's in the place of `stop`; `confirm` decides whether a token of it stops.
        Raises UserError (PoolTooSmall is one) with nothing queued.
        """
        if self.runner.lm_head is None:
            raise UserError(f"the model at {self.folder} has no LM head to sample from")
        self._check_branches(branches)
        limits = self._limits(branches, max_tokens)
        request = SampleRequest(
            self.runner,
            len(branches),
            branches=branches,
            sampling=sampling,
            stop_rule=self.stop_rule(stop) if rule is None else rule,
            confirm=confirm,
            purpose=purpose,
            results=[None] * len(branches),
        )
        for index, (branch, limit, key) in enumerate(zip(branches, limits, keys, strict=True)):
            if limit < 1:  # the context is full: nothing can be sampled
                request.results[index] = Sampled((), (), "length", ())
                request.num_left -= 1
                continue
            segment = branch.segment
            priority = 0.0 if priorities is None else priorities[index]
            segment.priority = max(segment.priority, priority)
            signed_key = key - (1 << 64) if key >> 63 else key
            self.runner.submit_sample(
                SampleJob(request, index, branch, signed_key, limit, priority, segment.age, segment)
            )
        return request

    def _limits(self, branches: Sequence[Branch], max_tokens: int | Sequence[int]) -> list[int]:
        """How many tokens each branch may be extended by: less where the context ends."""
        limits = [max_tokens] * len(branches) if isinstance(max_tokens, int) else max_tokens
        if limits and min(limits) < 1:
            raise UserError(f"max_tokens must be at least 1, got {min(limits)}")
        context = self.config.context
        limits = [min(limit, context - branch.num_tokens) for limit, branch in zip(limits, branches, strict=True)]
        for branch, limit in zip(branches, limits, strict=True):
            self.runner.check_fit(branch.segment, limit)
        return limits

    def append(
        self,
        branches: Sequence[Branch],
        tokens: Sequence[Sequence[int]],
        score_at: Sequence[Sequence[int]] | None = None,
        purpose: str = "prefilled",
    ) -> FeedRequest:
        """Queues feeding; `score_at` are indices into each branch's new tokens, read by the score head.

        Raises UserError (PoolTooSmall is one) with nothing queued.
        """
        self._check_branches(branches)
        for branch, new in zip(branches, tokens, strict=True):
            self._check_tokens(new)
            self._check_room(branch, len(new))
        scores = [[math.nan] * len(at) for at in score_at] if score_at is not None else [[] for _ in branches]
        request = FeedRequest(self.runner, len(branches), scores=scores)
        store = self.runner.store
        for index, (branch, new) in enumerate(zip(branches, tokens, strict=True)):
            if not len(new):
                request.num_left -= 1
                continue
            old = branch.segment
            branch.segment = segment = store.new(old, list(new), ledger=branch.ledger, purpose=purpose, age=old.age)
            store.release(old)
            positions = [segment.start + at for at in score_at[index]] if score_at is not None else ()
            self.runner.submit_feed(FeedJob(request, index, branch, segment, positions))
        return request

    def append_steps(
        self, branches: Sequence[Branch], steps: Sequence[Sequence[Sequence[int]]], purpose: str = "verified"
    ) -> FeedRequest:
        """Queues feeding of steps, none of them empty, each to be read by the score head at its last token.

        A step that another branch has had at the same place is neither fed nor scored again while one of them is
        open. Raises UserError (PoolTooSmall is one) with nothing queued.
        """
        self._check_branches(branches)
        for branch, new in zip(branches, steps, strict=True):
            for step in new:
                self._check_tokens(step)
            self._check_room(branch, *map(len, new))
        request = FeedRequest(self.runner, len(branches), scores=[[] for _ in branches])
        store = self.runner.store
        for index, (branch, new) in enumerate(zip(branches, steps, strict=True)):
            segments = []
            for step in new:
                old = branch.segment
                branch.segment = store.step(old, list(step), ledger=branch.ledger, purpose=purpose, age=old.age)
                store.release(old)
                segments.append(branch.segment)
            if any(segment.score[0] is None for segment in segments):
                self.runner.submit_feed(FeedJob(request, index, branch, branch.segment, steps=segments))
                continue
            branch.ledger.add("cached", branch.num_tokens if segments else 0)
            request.scores[index] = [segment.score[0] for segment in segments]
            request.num_left -= 1
        return request

    def put(self, branch: Branch, tokens: Sequence[int], purpose: str = "prefilled") -> None:
        """Appends tokens that are fed with the next forward that needs them. Raises UserError as `append` does."""
        self._check_branches([branch])
        self._check_tokens(tokens)
        self._check_room(branch, len(tokens))
        old, store = branch.segment, self.runner.store
        old.is_finished = False  # what it holds is needed again
        branch.segment = store.new(old, list(tokens), ledger=branch.ledger, purpose=purpose, age=old.age)
        store.release(old)

    def _check_room(self, branch: Branch, *runs: int) -> None:
        num_more = sum(runs)
        if branch.num_tokens + num_more > self.config.context:
            raise UserError(
                f"{branch.num_tokens} tokens and {num_more} more are over the context of the model, "
                f"{self.config.context}"
            )
        self.runner.check_fit(branch.segment, *runs)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        size = self.config.vocab_size
        if len(tokens) and not 0 <= min(tokens) <= max(tokens) < size:
            token = next(token for token in tokens if not 0 <= token < size)
            raise UserError(f"tokens must be within 0..{size - 1}, got {token}")

    def _check_branches(self, branches: Sequence[Branch]) -> None:
        """Raises UserError for a branch that is closed, busy, named twice, or another model's."""
        for branch in branches:
            branch.check_free()
            if branch.llm is not self:
                raise UserError(f"branch {branch.address} belongs to the model at {branch.llm.folder}")
        if len(set(branches)) < len(branches):
            raise UserError(f"each branch may be named once, got {[branch.address for branch in branches]}")
