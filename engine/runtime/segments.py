"""Where branches stand: a segment is a run of tokens after another segment, with its place in the KV tree.

Tips are what makes suspension cheap to write: a segment keeps its tokens, so its KV can be dropped and
made again from the nearest ancestor that still has its own. A cut (a new node of the KV tree)
falls exactly between segments, so a re-computed path has the cuts, and the bits, of the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.accounting import Ledger

NOT_RESIDENT = -1


@dataclass(eq=False, slots=True)
class Segment:
    """`tokens` after `origin`; the first `num_fed` of them have KV in the tree under `handle`.

    `num_users` counts the open branches that stand here and the live segments that start here; the segment
    is released when it falls to zero.
    """

    origin: Segment | None
    tokens: list[int]
    start: int  # position of tokens[0] in the branch
    num_blocks_before: int  # KV blocks of all its origins
    ledger: Ledger
    purpose: str  # who pays for feeding these tokens
    is_counted: bool = False  # the tokens themselves are on the bill already (they were sampled)
    handle: int = NOT_RESIDENT
    num_fed: int = 0
    num_users: int = 0
    max_fed: int = 0  # high-water mark of num_fed: feeding below it is re-computation
    priority: float = 0.0  # suspended lowest first
    age: int = 0  # of its problem; the oldest problem (lowest) is suspended last
    is_finished: bool = False  # ends an answer: its own KV is not needed any more
    # Of a step that a verifier scores at its last token: the score, None until it has been read.
    score: list[float | None] | None = None
    steps: dict[tuple[int, ...], Segment] = field(
        default_factory=dict
    )  # the live ones after this segment, by their tokens

    @property
    def is_resident(self) -> bool:
        return self.handle != NOT_RESIDENT

    @property
    def is_fed(self) -> bool:
        return self.is_resident and self.num_fed == len(self.tokens)

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)

    def set_fed(self, num_fed: int) -> None:
        """Records that so many of its tokens have KV."""
        self.num_fed = num_fed
        self.max_fed = max(self.max_fed, num_fed)

    def chain(self) -> list[Segment]:
        """The segments whose tokens must be fed for this one to be fed, the earliest first."""
        chain: list[Segment] = []
        segment: Segment | None = self
        while segment is not None and not segment.is_fed:
            chain.append(segment)
            segment = segment.origin
        return chain[::-1]

    def token_ids(self) -> list[int]:
        """All tokens from the start of the branch."""
        runs = []
        segment: Segment | None = self
        while segment is not None:
            runs.append(segment.tokens)
            segment = segment.origin
        return [token for run in reversed(runs) for token in run]


class SegmentStore:
    """Counts users of segments and gives their KV back to the tree."""

    def __init__(self, tree):
        self.tree = tree
        self.block_size = tree.block_size
        self.resident: set[Segment] = set()
        self.roots: dict[tuple[int, ...], Segment] = {}  # of prompts that branches opened later may start from too

    def num_blocks(self, num_tokens: int) -> int:
        """KV blocks of a run of tokens."""
        return -(-num_tokens // self.block_size)

    def acquire(self, segment: Segment) -> Segment:
        segment.num_users += 1
        return segment

    def new(self, origin: Segment | None, tokens: list[int], **fields) -> Segment:
        """A segment with one user; it keeps its origin alive, whose tokens do not change any more."""
        if origin is None:
            return Segment(None, tokens, 0, 0, num_users=1, **fields)
        origin.num_users += 1
        num_blocks = origin.num_blocks_before + self.num_blocks(len(origin.tokens))
        return Segment(origin, tokens, origin.end, num_blocks, num_users=1, **fields)

    def root(self, tokens: list[int], ledger: Ledger, **fields) -> Segment:
        """The segment of a prompt, one for all that are opened with it here; the caller is a user of it, and pays from
        now on for what has to be fed."""
        segment = self.roots.get(tuple(tokens))
        if segment is None:
            segment = self.roots[tuple(tokens)] = self.new(None, tokens, ledger=ledger, **fields)
            return segment
        segment.ledger = ledger
        return self.acquire(segment)

    def step(self, origin: Segment, tokens: list[int], ledger: Ledger, **fields) -> Segment:
        """The segment of a step that is to be scored, shared by all branches that have it after `origin`.

        The caller becomes a user of it, and pays from now on for what has to be fed.
        """
        segment = origin.steps.get(tuple(tokens))
        if segment is not None:
            segment.ledger = ledger
            return self.acquire(segment)
        segment = origin.steps[tuple(tokens)] = self.new(origin, tokens, ledger=ledger, **fields)
        segment.score = [None]
        return segment

    def release(self, segment: Segment | None) -> None:
        """Takes one user away; a segment without users frees its KV (a prompt's stays cached)."""
        while segment is not None:
            assert segment.num_users > 0, "a segment was released more often than acquired"
            segment.num_users -= 1
            if segment.num_users:
                return
            if segment.score is not None:
                del segment.origin.steps[tuple(segment.tokens)]
            elif segment.origin is None and self.roots.get(tuple(segment.tokens)) is segment:
                del self.roots[tuple(segment.tokens)]
            if segment.is_resident:
                self._close(segment, keep=segment.origin is None)
            segment = segment.origin

    def make_resident(self, segment: Segment) -> int:
        """Gives the segment a handle in the tree; its origin must be fed. Returns tokens found in the cache."""
        assert not segment.is_resident
        num_cached = 0
        if segment.origin is None:
            segment.handle, num_cached = self.tree.open(segment.tokens[:-1])
        else:
            assert segment.origin.is_fed
            (segment.handle,) = self.tree.fork(segment.origin.handle, 1).tolist()
        segment.num_fed = num_cached
        self.resident.add(segment)
        return num_cached

    def fork_all(self, segments: Sequence[Segment]) -> None:
        """Gives segments without one a handle each, with one call for those that start at the same place."""
        siblings: dict[Segment, list[Segment]] = {}
        for segment in segments:
            siblings.setdefault(segment.origin, []).append(segment)
        for origin, group in siblings.items():
            assert origin.is_fed
            for segment, handle in zip(group, self.tree.fork(origin.handle, len(group)).tolist(), strict=True):
                segment.handle, segment.num_fed = handle, 0
            self.resident.update(group)

    def drop(self, segment: Segment) -> None:
        """Suspends a segment: its KV is freed, its tokens are kept."""
        self._close(segment, keep=False)

    def _close(self, segment: Segment, keep: bool) -> None:
        self.tree.close(segment.handle, keep)
        self.resident.discard(segment)
        segment.handle, segment.num_fed = NOT_RESIDENT, 0

    def leaves(self) -> list[Segment]:
        """Resident segments that no resident segment starts from: the only ones whose KV can be freed."""
        origins = {segment.origin for segment in self.resident}
        return [segment for segment in self.resident if segment not in origins]
