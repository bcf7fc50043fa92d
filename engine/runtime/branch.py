"""A live sequence of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.accounting import Ledger
from engine.errors import UserError
from engine.runtime.requests import FeedJob, SampleJob
from engine.runtime.segments import Segment

if TYPE_CHECKING:
    from engine.runtime.llm import LLM


class Branch:
    """A live sequence. Its KV is shared with every branch that was forked from the same prefix."""

    def __init__(
        self,
        llm: LLM,
        segment: Segment,
        ledger: Ledger,
        address: tuple[int, ...] = (),
        num_prompt_tokens: int | None = None,
    ):
        self.num_prompt_tokens = segment.end if num_prompt_tokens is None else num_prompt_tokens
        self.llm = llm
        self.segment = segment
        self.ledger = ledger
        self.address = address  # which child of which child of the opened branch
        self.job: SampleJob | FeedJob | None = None  # what is being done to it
        self.num_forks = 0
        self.is_open = True

    @property
    def token_ids(self) -> list[int]:
        """The prompt and everything after it."""
        return self.segment.token_ids()

    @property
    def num_tokens(self) -> int:
        segment = self.segment
        return segment.start + len(segment.tokens)

    @property
    def text(self) -> str:
        return self.llm.decode(self.token_ids)

    def fork(self, num_branches: int) -> list[Branch]:
        """O(1) each: the children stand where this branch stands, and it stays open."""
        self.check_free()
        if num_branches < 1:
            raise UserError(f"a branch is forked into at least 1, got {num_branches}")
        first, self.num_forks = self.num_forks, self.num_forks + num_branches
        store = self.llm.runner.store
        return [
            Branch(
                self.llm, store.acquire(self.segment), self.ledger, (*self.address, first + i), self.num_prompt_tokens
            )
            for i in range(num_branches)
        ]

    def rewind(self, num_tokens: int) -> int:
        """Takes back what was appended after the first `num_tokens` tokens, in the runs in which it was appended.

        Returns how many tokens are left: `num_tokens` or fewer, where that falls within a run. 0 says that it
        falls within the prompt: then nothing is taken back.
        """
        self.check_free()
        segment: Segment | None = self.segment
        while segment is not None and segment.end > num_tokens:
            segment = segment.origin
        if segment is None:
            return 0
        if segment is not self.segment:
            store = self.llm.runner.store
            old, self.segment = self.segment, store.acquire(segment)
            store.release(old)
        return segment.end

    def close(self) -> None:
        """Frees what only this branch holds. Raises UserError the second time."""
        if not self.is_open:
            raise UserError(f"branch {self.address} is closed already")
        self.is_open = False
        if isinstance(self.job, SampleJob):
            self.llm.runner.cancel(self.job)
        elif isinstance(self.job, FeedJob):
            self.llm.runner.cancel_feed(self.job)
        self.llm.runner.store.release(self.segment)

    def check_free(self) -> None:
        """Raises UserError for a branch that is closed or busy."""
        if not self.is_open:
            raise UserError(f"branch {self.address} is closed")
        if self.job is not None:
            raise UserError(f"branch {self.address} is being extended")
