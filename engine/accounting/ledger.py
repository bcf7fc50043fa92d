"""The ledger: the cost of one problem in tokens and FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, field

PURPOSES = ("generated", "prefilled", "cached", "recomputed", "verified", "lookahead", "estimation")


def _zeros() -> dict[str, int]:
    return dict.fromkeys(PURPOSES, 0)


@dataclass
class Ledger:
    """Tokens and FLOPs of one problem by purpose.

    * `generated`: sampled tokens that belong to an answer
    * `lookahead`: tokens of rollouts that only score a step
    * `estimation`: all tokens spent on predicting difficulty; its samples may vote too, but are not counted twice
    * `prefilled`: prompt tokens and other given ones
    * `recomputed`: tokens whose KV was evicted and computed again
    * `verified`: tokens that went through a verifier
    * `cached`: tokens that were found in the KV cache; they need no forward, so their FLOPs are 0

    `estimated` names the entries, such as "flops.generated", of which a part was not counted: an endpoint has computed
    it, and has not said how much it was.
    """

    tokens: dict[str, int] = field(default_factory=_zeros)
    flops: dict[str, int] = field(default_factory=_zeros)
    estimated: set[str] = field(default_factory=set)

    def add(self, purpose: str, num_tokens: int, flops: int = 0) -> None:
        """Adds tokens and FLOPs under one of PURPOSES."""
        self.tokens[purpose] += num_tokens
        self.flops[purpose] += flops

    def include(self, other: Ledger, purpose: str | None = None) -> None:
        """Adds another ledger; with `purpose`, all its entries but `cached` and `recomputed` count under that one."""
        for name in PURPOSES:
            kept = purpose is None or name in ("cached", "recomputed")
            entry = name if kept else purpose
            self.add(entry, other.tokens[name], other.flops[name])
            self.estimated |= {f"{part}.{entry}" for part in ("tokens", "flops") if f"{part}.{name}" in other.estimated}

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    def as_dict(self) -> dict[str, dict[str, int]]:
        return {"tokens": dict(self.tokens), "flops": dict(self.flops)}

    @classmethod
    def from_dict(cls, row: dict[str, dict[str, int]]) -> Ledger:
        return cls({**_zeros(), **row["tokens"]}, {**_zeros(), **row["flops"]})
