"""Findings of sections 4 and 5: revisions, and the exchange with pretraining."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.paper.chains import Attempts
from benchmarks.paper.evidence import Evidence
from benchmarks.paper.measured import difference
from benchmarks.paper.rules import (
    ABOVE,
    BELOW,
    CLOSE,
    NOT_ABOVE,
    REACHES,
    SHARE,
    Claim,
    Figures,
    Unmeasured,
    at,
    versus,
)
from benchmarks.paper.trades import GROUPS, REGIMES, trades

BEST, BY_BIN = "best-of-n", "revisions, best ratio by bin"
SAME_JUDGE = "best-of-n, ORM"  # the policy's own samples, judged as the revisions are
CHAIN, PARALLEL, MIXED = ("revisions 64:1", 64), ("revisions 1:64", 64), ("revisions 4:1", 64)
CHAIN_BY_MAJORITY, PARALLEL_BY_MAJORITY = ("revisions 64:1, majority", 64), ("revisions 1:64, majority", 64)


def rise(which: str) -> Callable[[Evidence], Figures]:
    """Measures accuracy of attempts 16 to 20 (or the last five) less that of the first."""

    def measure(evidence: Evidence) -> Figures:
        attempts = _attempts(evidence, which)
        last = min(20, attempts.longest)
        late, first = attempts.mean_right(max(2, last - 4), last), attempts.mean_right(1, 1)
        parts = {f"attempts {max(2, last - 4)} to {last}": float(late.mean()), "first attempt": float(first.mean())}
        return Figures(difference(late, first), parts)

    return measure


def turned(evidence: Evidence) -> Figures:
    attempts = _attempts(evidence, "attempts")
    share, back = attempts.turned(True), attempts.turned(False)
    if share is None:
        raise Unmeasured("a right attempt that was revised")
    return Figures(share, {"right to wrong": share[0], "wrong to right": back[0] if back else 0.0})


def selector(evidence: Evidence) -> Figures:
    """The vote over a chain of 64, less its last attempt."""
    voted = at(evidence, "revisions 64:1", 64).right
    attempts = _attempts(evidence, "attempts")
    last = attempts.mean_right(64, 64)
    return Figures(difference(voted, last), {"vote": float(voted.mean()), "last attempt": float(last.mean())})


def _attempts(evidence: Evidence, which: str) -> Attempts:
    attempts = getattr(evidence, which)
    if attempts is None or attempts.longest < 2:
        raise Unmeasured("revisions" if which == "attempts" else "the policy shown its own attempts")
    return attempts


REVISION_CLAIMS = (
    Claim("4.1", 4, "pass@1 rises along a chain of revisions", "18 to 24-25 after 15 to 20", ABOVE, rise("attempts")),
    Claim("4.2", 4, "many right answers are revised to wrong ones", "about 38 %", SHARE, turned),
    Claim("4.3", 4, "so a selector is needed: the chain's vote is over its last attempt", "drawn", ABOVE, selector),
    Claim(
        "4.4a",
        4,
        "at 64 one chain is over parallel answers, chosen by the verifier",
        "41.5 against 39",
        ABOVE,
        versus(CHAIN, PARALLEL),
    ),
    Claim(
        "4.4b",
        4,
        "at 64 one chain is over parallel answers, chosen by majority",
        "38 against 35",
        ABOVE,
        versus(CHAIN_BY_MAJORITY, PARALLEL_BY_MAJORITY),
    ),
    Claim("4.5a", 4, "a mix (4:1) is over all parallel", "43-44 against 40 at 256", ABOVE, versus(MIXED, PARALLEL)),
    Claim("4.5b", 4, "a mix (4:1) is over all sequential", "43-44 against 42 at 256", ABOVE, versus(MIXED, CHAIN)),
    Claim(
        "4.6a",
        4,
        "easy problems prefer sequential revisions",
        "bins 1 and 2, drawn",
        ABOVE,
        versus(CHAIN, PARALLEL, (0, 1)),
    ),
    Claim("4.6b", 4, "hard problems prefer a mix", "bins 4 and 5, drawn", ABOVE, versus(MIXED, CHAIN, (3, 4))),
    Claim(
        "4.7a",
        4,
        "compute-optimal over the ratio at 64 reaches the policy's best-of-256, by the PRM",
        "4x fewer generations",
        REACHES,
        versus((BY_BIN, 64), (BEST, 256)),
    ),
    Claim(
        "4.7b",
        4,
        "compute-optimal over the ratio at 64 reaches the policy's best-of-256, by the ORM of the revisions",
        "4x fewer generations",
        REACHES,
        versus((BY_BIN, 64), (SAME_JUDGE, 256)),
    ),
    Claim(
        "4.8a",
        4,
        "the best ratio is over the reviser's parallel answers at 64",
        "drawn",
        ABOVE,
        versus((BY_BIN, 64), PARALLEL),
        is_must_show=True,
    ),
    Claim(
        "4.8b",
        4,
        "the best ratio is over the policy's own best-of-N at 64, by the PRM",
        "drawn",
        ABOVE,
        versus((BY_BIN, 64), (BEST, 64)),
        is_must_show=True,
    ),
    Claim(
        "4.8c",
        4,
        "the best ratio is over the policy's own best-of-N at 64, by the ORM of the revisions",
        "drawn",
        ABOVE,
        versus((BY_BIN, 64), (SAME_JUDGE, 64)),
        is_must_show=True,
    ),
    Claim(
        "4.9",
        4,
        "a policy that is only shown its attempts does not revise",
        "prompting alone fails",
        NOT_ABOVE,
        rise("baseline"),
    ),
)

# Relative gains over the 14x model, percent: at R << 1, R ~ 1, R >> 1.
PAPER_GAINS = {
    "revisions": {"easy": (21.6, 16.7, 5.4), "medium": (27.8, 3.5, -24.3), "hard": (11.8, -11.9, -37.2)},
    "PRM search": {"easy": (19.1, 2.2, 2.0), "medium": (-5.6, -35.6, -30.6), "hard": (0.0, -35.3, -52.9)},
}


def trade_claims() -> list[Claim]:
    """One per side, group and regime; a gain of nothing has no direction to replicate."""
    claims = []
    for side, groups in PAPER_GAINS.items():
        for group in GROUPS:
            for regime, gain in zip(REGIMES, groups[group], strict=True):
                relation = "is over" if gain > 0 else "is below" if gain < 0 else "is level with"
                claims.append(
                    Claim(
                        f"5.{len(claims) + 1}",
                        5,
                        f"{group} problems, {regime}: the small model with {side} {relation} the 14x model",
                        f"{gain:+.1f} % relative",
                        ABOVE if gain > 0 else BELOW if gain < 0 else CLOSE,
                        partial(gain_of, side, group, regime),
                        is_must_show=gain > 0 and group == "easy" and regime == REGIMES[0],
                    )
                )
    return claims


def gain_of(side: str, group: str, regime: str, evidence: Evidence) -> Figures:
    """The small model's accuracy less the large one's, by the formula of the paper's first version."""
    if evidence.large is None:
        raise Unmeasured("greedy answers of a larger policy")
    for trade in trades(evidence):
        if (trade.version, trade.side, trade.group, trade.regime) == ("arxiv", side, group, regime):
            note = f"{trade.budget} generations of the {trade.num_generations} that it may sample"
            if trade.relative_gain is not None:
                note += f"; {100 * trade.relative_gain:+.1f} % relative"
            return Figures(trade.difference, {"small": trade.small, "large": trade.large}, note)
    raise Unmeasured(f"{side} within the generations of {regime}")
