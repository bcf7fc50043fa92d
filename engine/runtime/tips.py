"""Where branches stand: a tip is a run of tokens after another tip, with its place in the KV tree.

Tips are what makes suspension cheap to write: a tip keeps its tokens, so its KV can be dropped and
made again from the nearest ancestor that still has its own. A cut (a new node of the KV tree)
falls exactly between tips, so a re-computed path has the cuts, and the bits, of the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.accounting import Ledger

NOT_RESIDENT = -1


@dataclass(eq=False, slots=True)
class Tip:
    """`tokens` after `origin`; the first `num_fed` of them have KV in the tree under `handle`.

    `num_users` counts the open branches that stand here and the live tips that start here; the tip
    is released when it falls to zero.
    """

    origin: Tip | None
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
    steps: dict[tuple[int, ...], Tip] = field(default_factory=dict)  # the live ones after this tip, by their tokens

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

    def chain(self) -> list[Tip]:
        """The tips whose tokens must be fed for this one to be fed, the earliest first."""
        chain: list[Tip] = []
        tip: Tip | None = self
        while tip is not None and not tip.is_fed:
            chain.append(tip)
            tip = tip.origin
        return chain[::-1]

    def token_ids(self) -> list[int]:
        """All tokens from the start of the branch."""
        runs = []
        tip: Tip | None = self
        while tip is not None:
            runs.append(tip.tokens)
            tip = tip.origin
        return [token for run in reversed(runs) for token in run]


class TipStore:
    """Counts users of tips and gives their KV back to the tree."""

    def __init__(self, tree):
        self.tree = tree
        self.block_size = tree.block_size
        self.resident: set[Tip] = set()
        self.roots: dict[tuple[int, ...], Tip] = {}  # of prompts that branches opened later may start from too

    def num_blocks(self, num_tokens: int) -> int:
        """KV blocks of a run of tokens."""
        return -(-num_tokens // self.block_size)

    def acquire(self, tip: Tip) -> Tip:
        tip.num_users += 1
        return tip

    def new(self, origin: Tip | None, tokens: list[int], **fields) -> Tip:
        """A tip with one user; it keeps its origin alive, whose tokens do not change any more."""
        if origin is None:
            return Tip(None, tokens, 0, 0, num_users=1, **fields)
        origin.num_users += 1
        num_blocks = origin.num_blocks_before + self.num_blocks(len(origin.tokens))
        return Tip(origin, tokens, origin.end, num_blocks, num_users=1, **fields)

    def root(self, tokens: list[int], ledger: Ledger, **fields) -> Tip:
        """The tip of a prompt, one for all that are opened with it here; the caller is a user of it, and pays from
        now on for what has to be fed."""
        tip = self.roots.get(tuple(tokens))
        if tip is None:
            tip = self.roots[tuple(tokens)] = self.new(None, tokens, ledger=ledger, **fields)
            return tip
        tip.ledger = ledger
        return self.acquire(tip)

    def step(self, origin: Tip, tokens: list[int], ledger: Ledger, **fields) -> Tip:
        """The tip of a step to be scored, one for all that say it after `origin`; the caller is a user of it, and pays
        from now on for what has to be fed."""
        tip = origin.steps.get(tuple(tokens))
        if tip is not None:
            tip.ledger = ledger
            return self.acquire(tip)
        tip = origin.steps[tuple(tokens)] = self.new(origin, tokens, ledger=ledger, **fields)
        tip.score = [None]
        return tip

    def release(self, tip: Tip | None) -> None:
        """Takes one user away; a tip without users frees its KV (a prompt's stays cached)."""
        while tip is not None:
            assert tip.num_users > 0, "a tip was released more often than acquired"
            tip.num_users -= 1
            if tip.num_users:
                return
            if tip.score is not None:
                del tip.origin.steps[tuple(tip.tokens)]
            elif tip.origin is None and self.roots.get(tuple(tip.tokens)) is tip:
                del self.roots[tuple(tip.tokens)]
            if tip.is_resident:
                self._close(tip, keep=tip.origin is None)
            tip = tip.origin

    def make_resident(self, tip: Tip) -> int:
        """Gives the tip a handle in the tree; its origin must be fed. Returns tokens found in the cache."""
        assert not tip.is_resident
        num_cached = 0
        if tip.origin is None:
            tip.handle, num_cached = self.tree.open(tip.tokens[:-1])
        else:
            assert tip.origin.is_fed
            (tip.handle,) = self.tree.fork(tip.origin.handle, 1).tolist()
        tip.num_fed = num_cached
        self.resident.add(tip)
        return num_cached

    def fork_all(self, tips: Sequence[Tip]) -> None:
        """Gives tips without one a handle each, with one call for those that start at the same place."""
        siblings: dict[Tip, list[Tip]] = {}
        for tip in tips:
            siblings.setdefault(tip.origin, []).append(tip)
        for origin, group in siblings.items():
            assert origin.is_fed
            for tip, handle in zip(group, self.tree.fork(origin.handle, len(group)).tolist(), strict=True):
                tip.handle, tip.num_fed = handle, 0
            self.resident.update(group)

    def drop(self, tip: Tip) -> None:
        """Suspends a tip: its KV is freed, its tokens are kept."""
        self._close(tip, keep=False)

    def _close(self, tip: Tip, keep: bool) -> None:
        self.tree.close(tip.handle, keep)
        self.resident.discard(tip)
        tip.handle, tip.num_fed = NOT_RESIDENT, 0

    def leaves(self) -> list[Tip]:
        """Resident tips that no resident tip starts from: the only ones whose KV can be freed."""
        origins = {tip.origin for tip in self.resident}
        return [tip for tip in self.resident if tip not in origins]
