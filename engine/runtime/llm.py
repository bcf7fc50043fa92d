"""A language model with its KV pool: live sequences that fork. Searches are built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from engine.accounting import Ledger
from engine.counts import check_seed
from engine.errors import UserError
from engine.keys import branch_key
from engine.model import (
    Decoder,
    LMHead,
    ModelConfig,
    Placement,
    Ranks,
    ScoreHead,
    classification_head,
    load_checkpoint,
    resolve_device,
    resolve_dtype,
    resolve_folder,
)
from engine.runtime.branch import Branch
from engine.runtime.checks import as_ints, check_branches, check_each, check_prompt, check_purpose, checked_runs
from engine.runtime.executors.base import ModelParts
from engine.runtime.kv import KVPool
from engine.runtime.request_queue import RequestQueue
from engine.runtime.requests import GeneratedTokens, PrefillJob, PrefillRequest
from engine.runtime.runner import Runner
from engine.types import Sampling

GPU_CHUNK = 4096  # tokens of prompts and steps in one forward

HeadMaker = Callable[[ModelConfig, Mapping[str, torch.Tensor]], ScoreHead]


class LLM(RequestQueue):
    """One model with its KV pool. Everything that is queued runs in batches over all that is pending.

    `generate`, `append` and `next_logits` return when their work is done. The `queue_` methods, for callers that drive
    several requests, return a request at once; its results are there when it is done. One thread may use it at a time.
    """

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
        device: str | Placement = "cpu",  # "cpu", "cuda", "cuda:1"
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
            pool=KVPool.allocate(decoder.part, torch_dtype, num_blocks, placement),
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
    def ranks(self) -> Ranks:
        """The processes that share every layer of the model, and this one's number among them."""
        return self.runner.parts.decoder.placement.ranks

    @property
    def free_share(self) -> float:
        """The share of the KV blocks that are free, or that hold only cached prefixes of closed branches."""
        tree = self.runner.tree
        return (tree.num_free_blocks + tree.num_cached_blocks) / tree.num_blocks

    def clear_cache(self) -> None:
        """Forgets the cached prefixes of closed branches."""
        with self.in_use:
            self.runner.tree.clear_cache()

    def encode(self, text: str, *, is_start: bool = True) -> list[int]:
        """Token ids; only if `is_start` with the special tokens and the space that the tokenizer puts before a text.

        Raises UserError for a lone surrogate, and for the start of a text that the context cannot hold, however few
        tokens it has.
        """
        if is_start and len(text) > self.vocabulary.most_characters(self.config.context):
            raise UserError(
                f"a text of {len(text)} characters is more than the {self.config.context} tokens that the context of "
                f"{self.folder} holds, got {text[:40]!r}..."
            )
        return self.vocabulary.encode(text, is_start=is_start)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; some tokenizers leave out a space at its start."""
        return self.vocabulary.decode(token_ids)

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
        tokens = self.encode(prompt) if isinstance(prompt, str) else as_ints("a prompt's tokens", prompt)
        if isinstance(prompt, str):
            self.vocabulary.check(tokens)
        check_prompt(prompt, tokens, self.config)
        check_purpose(purpose)
        ledger = Ledger() if ledger is None else ledger
        fields = {"ledger": ledger, "purpose": purpose, "age": next(self._ages)}
        with self.in_use:
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
        seed = check_seed(seed)
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
        check_each(branches, tokens=tokens)
        with self.in_use:
            check_branches(branches, self)
            for branch, (new,) in zip(
                branches, checked_runs(branches, [[new] for new in tokens], self.runner), strict=True
            ):
                if new:
                    branch.segment.is_finished = False  # its KV is needed again
                    self._append_segment(branch, new, "prefilled")

    def next_logits(self, branches: Sequence[Branch]) -> torch.Tensor:
        """(branches, vocabulary) float32: the logits after each branch's last token. Changes nothing."""
        request = self.queue_logits(branches)
        self.run(request)
        if not request.logits:
            return torch.empty(0, self.config.vocab_size)
        return torch.stack(request.logits)[:, : self.config.vocab_size]

    def queue_logits(self, branches: Sequence[Branch]) -> PrefillRequest:
        """Queues the reading of each branch's last token; the request's `logits` are there when it is done.

        Each is (vocabulary + hidden size,) float32, the last hidden state behind the logits.
        """
        if not self.has_lm_head:
            raise UserError(f"the model at {self.folder} has no LM head")
        with self.in_use:
            check_branches(branches, self)
            for branch in branches:
                self.runner.check_fit(branch.segment)
            request = PrefillRequest(self.runner, len(branches), wants_logits=True, logits=[None] * len(branches))
            for index, branch in enumerate(branches):
                self.runner.submit_prefill(PrefillJob(request, index, branch, branch.segment))
        return request
