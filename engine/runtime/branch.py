"""A live sequence of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from engine.accounting import Ledger
from engine.counts import check_count
from engine.errors import UserError
from engine.runtime.one_thread import OneThread
from engine.runtime.segments import Segment, SegmentStore

_MAX_FORKS = 1 << 18  # branches that a KV tree can have open


class BranchOwner(Protocol):
    """What a branch knows of its model, which is an `LLM`."""

    folder: Path

    @property
    def store(self) -> SegmentStore: ...

    @property
    def in_use(self) -> OneThread: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class Job(Protocol):
    """Work for a branch that has been queued and has not ended."""

    def cancel(self) -> None:
        """Takes the work back; the branch is then free."""
        ...


class Branch:
    """A live sequence. Its KV is shared with every branch that was forked from the same prefix."""

    def __init__(
        self,
        owner: BranchOwner,
        segment: Segment,
        ledger: Ledger,
        address: tuple[int, ...] = (),
        num_prompt_tokens: int | None = None,
    ):
        self.num_prompt_tokens = segment.end if num_prompt_tokens is None else num_prompt_tokens
        self.owner = owner
        self.segment = segment  # the last one; the earlier ones are its origins
        self.ledger = ledger
        self.address = address  # (2, 0): first fork of the third fork of the opened branch
        self.job: Job | None = None
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
        return self.owner.decode(self.token_ids)

    def fork(self, num_branches: int) -> list[Branch]:
        """Branches that continue from the same last token, in O(1) each. This branch stays open."""
        num_branches = check_count("the number of forks", num_branches, 1, _MAX_FORKS)
        with self.owner.in_use:
            self.check_free()
            first, self.num_forks = self.num_forks, self.num_forks + num_branches
            return [self._fork(first + i) for i in range(num_branches)]

    def _fork(self, number: int) -> Branch:
        segment = self.owner.store.acquire(self.segment)
        return Branch(self.owner, segment, self.ledger, (*self.address, number), self.num_prompt_tokens)

    def rewind(self, num_tokens: int) -> int:
        """Takes back whole segments at the end, until at most `num_tokens` tokens are left.

        Returns how many tokens are left. 0 means that the prompt alone is longer: then nothing is taken back.
        """
        num_tokens = check_count("the number of tokens", num_tokens, 0)
        with self.owner.in_use:
            self.check_free()
            segment: Segment | None = self.segment
            while segment is not None and segment.end > num_tokens:
                segment = segment.origin
            if segment is None:
                return 0
            if segment is not self.segment:
                store = self.owner.store
                old, self.segment = self.segment, store.acquire(segment)
                store.release(old)
            return segment.end

    def close(self) -> None:
        """Frees what only this branch holds, after a step of another thread. Raises UserError the second time."""
        with self.owner.in_use.after_others():
            if not self.is_open:
                raise UserError(f"branch {self.address} is closed already")
            self.is_open = False
            if self.job is not None:
                self.job.cancel()
            self.owner.store.release(self.segment)

    def check_free(self) -> None:
        """Raises UserError for a branch that is closed or busy."""
        if not self.is_open:
            raise UserError(f"branch {self.address} is closed")
        if self.job is not None:
            raise UserError(f"branch {self.address} is being extended")
