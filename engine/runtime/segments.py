"""Segments: the runs of tokens that branches are made of, each with its place in the KV tree.

A branch is a chain of segments: its prompt, then every extension or step. A segment keeps its tokens when its KV is
dropped, so a suspended branch can be computed again from the nearest ancestor that still has its KV. The KV tree
starts a new node exactly where a segment starts: a branch that is computed again has the nodes, and so the bits, that
it had the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.accounting import Ledger
from ttc_kernels._native import KVTree

NOT_RESIDENT = -1


@dataclass(eq=False, slots=True)
class Segment:
    """`tokens` after `origin`; the KV of the first `num_computed` of them is in the tree under `handle`.

    `num_users` counts the open branches that end with this segment and the live segments that follow it. At zero the
    segment is released.
    """

    origin: Segment | None  # the segment before it, None for a prompt
    tokens: list[int]
    start: int  # position of tokens[0] in the branch
    num_blocks_before: int  # KV blocks of all segments before it
    ledger: Ledger
    purpose: str  # the entry of the ledger that pays for computing these tokens
    is_counted: bool = False  # sampled tokens: their number is billed when they are drawn, only their FLOPs later
    handle: int = NOT_RESIDENT
    num_computed: int = 0
    num_users: int = 0
    max_computed: int = 0  # the highest num_computed so far: what is computed below it is billed as recomputed
    priority: float = 0.0  # when the pool is full the lowest is suspended first
    age: int = 0  # number of the opened branch that it belongs to; the lowest, the oldest, is suspended last
    is_finished: bool = False  # the last segment of an answer: its own KV is not needed any more
    # For a step that a verifier scores at its last token: one score, None until it has been read.
    score: list[float | None] | None = None
    steps: dict[tuple[int, ...], Segment] = field(default_factory=dict)  # live scored steps after it, by their tokens

    @property
    def is_resident(self) -> bool:
        return self.handle != NOT_RESIDENT

    @property
    def is_computed(self) -> bool:
        return self.is_resident and self.num_computed == len(self.tokens)

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)

    def set_computed(self, num_computed: int) -> None:
        """Records that the first `num_computed` tokens have KV."""
        self.num_computed = num_computed
        self.max_computed = max(self.max_computed, num_computed)

    def pending_chain(self) -> list[Segment]:
        """The segments, earliest first, that must be computed for this one to be computed; itself is the last."""
        chain: list[Segment] = []
        segment: Segment | None = self
        while segment is not None and not segment.is_computed:
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
    """Counts the users of segments, and gives the KV of released segments back to the tree."""

    def __init__(self, tree: KVTree):
        self.tree = tree
        self.block_size = tree.block_size
        self.resident: dict[Segment, None] = {}  # in an order that every run repeats
        self.roots: dict[tuple[int, ...], Segment] = {}  # prompts that branches opened later share, by their tokens

    def num_blocks(self, num_tokens: int) -> int:
        """KV blocks of a run of tokens."""
        return -(-num_tokens // self.block_size)

    def acquire(self, segment: Segment) -> Segment:
        segment.num_users += 1
        return segment

    def new(self, origin: Segment | None, tokens: list[int], **fields) -> Segment:
        """A segment with one user. It keeps its origin alive, whose tokens must not change from now on."""
        if origin is None:
            return Segment(None, tokens, 0, 0, num_users=1, **fields)
        origin.num_users += 1
        num_blocks = origin.num_blocks_before + self.num_blocks(len(origin.tokens))
        return Segment(origin, tokens, origin.end, num_blocks, num_users=1, **fields)

    def root(self, tokens: list[int], ledger: Ledger, **fields) -> Segment:
        """The segment of a prompt, shared by all branches that are opened with it through this method.

        The caller becomes a user of it; its ledger pays from now on for what has to be computed.
        """
        segment = self.roots.get(tuple(tokens))
        if segment is None:
            segment = self.roots[tuple(tokens)] = self.new(None, tokens, ledger=ledger, **fields)
            return segment
        segment.ledger = ledger
        return self.acquire(segment)

    def step(self, origin: Segment, tokens: list[int], ledger: Ledger, **fields) -> Segment:
        """The segment of a step that is to be scored, shared by all branches that have it after `origin`.

        The caller becomes a user of it; its ledger pays from now on for what has to be computed.
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
        """Gives the segment a handle in the tree; its origin must be computed. Returns tokens found in the cache."""
        assert not segment.is_resident
        num_cached = 0
        if segment.origin is None:
            segment.handle, num_cached = self.tree.open(segment.tokens[:-1])
        else:
            assert segment.origin.is_computed
            (segment.handle,) = self.tree.fork(segment.origin.handle, 1).tolist()
        segment.num_computed = num_cached
        self.resident[segment] = None
        return num_cached

    def fork_all(self, segments: Sequence[Segment]) -> None:
        """Gives segments without a handle one each, with one call of the tree for all of the same origin."""
        siblings: dict[Segment, list[Segment]] = {}
        for segment in segments:
            siblings.setdefault(segment.origin, []).append(segment)
        for origin, group in siblings.items():
            assert origin.is_computed
            for segment, handle in zip(group, self.tree.fork(origin.handle, len(group)).tolist(), strict=True):
                segment.handle, segment.num_computed = handle, 0
            self.resident.update(dict.fromkeys(group))

    def drop(self, segment: Segment) -> None:
        """Suspends a segment: its KV is freed, its tokens are kept."""
        self._close(segment, keep=False)

    def _close(self, segment: Segment, keep: bool) -> None:
        self.tree.close(segment.handle, keep)
        self.resident.pop(segment, None)
        segment.handle, segment.num_computed = NOT_RESIDENT, 0

    def leaves(self) -> list[Segment]:
        """Resident segments that no resident segment follows: the only ones whose KV can be freed."""
        origins = {segment.origin for segment in self.resident}
        return [segment for segment in self.resident if segment not in origins]
