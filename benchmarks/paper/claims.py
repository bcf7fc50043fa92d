"""Every finding of sections 1 to 5 of the method that we implement, and how it is held against ours."""

from __future__ import annotations

import numpy as np

from benchmarks.paper.claims_ours import OUR_CLAIMS
from benchmarks.paper.claims_revisions import REVISION_CLAIMS, trade_claims
from benchmarks.paper.evidence import Evidence
from benchmarks.paper.exploits import is_pretended
from benchmarks.paper.measured import difference
from benchmarks.paper.rules import (
    ABOVE,
    BELOW,
    CLOSE,
    FAILING,
    REACHES,
    Claim,
    Figures,
    Finding,
    accuracy_in,
    at,
    gap_growth,
    judge,
    versus,
)

BEST, ORM, BEAM = "best-of-n", "best-of-n, ORM", "beam M=4"
ORACLE, PREDICTED, PILOT = "compute-optimal, oracle", "compute-optimal, predicted", "compute-optimal, agreement pilot"


def verifiers_compared(number: str, budget: int, figures: str) -> list[Claim]:
    """What the paper finds of majority, ORM and PRM at one budget."""
    sides = (
        ("a", "the PRM is over the majority", BEST, "majority"),
        ("b", "the PRM is over the ORM, which saw more answers to whole problems and no step's label", BEST, ORM),
        ("c", "the ORM is over the majority", ORM, "majority"),
    )
    return [
        Claim(
            number + letter,
            1,
            f"{claim} at {budget}",
            figures,
            ABOVE,
            versus((one, budget), (other, budget)),
            is_must_show=True,
        )
        for letter, claim, one, other in sides
    ]


def exploits(evidence: Evidence) -> Figures:
    """Share of answers with a pretended line: those that beam search chose, less those of all samples."""
    budget = next((each for each in (256, 64, 16) if each in evidence.tables.get(BEAM, {})), 256)
    chosen = at(evidence, BEAM, budget).chosen
    searched = np.array([np.mean([_is_exploit(text) for text in texts if text] or [0.0]) for texts in chosen])
    sampled = np.array([np.mean([_is_exploit(text) for text in texts]) for texts in evidence.samples])
    parts = {f"chosen by beam search at {budget}": float(searched.mean()), "of all samples": float(sampled.mean())}
    return Figures(difference(searched, sampled), parts)


def _is_exploit(text: str) -> bool:
    return any(map(is_pretended, text.splitlines()))


VERIFIER_CLAIMS = (
    Claim(
        "1.1",
        1,
        "the last step's score aggregates better than the least",
        "37 against 35 at 256",
        ABOVE,
        versus((BEST, 256), ("best-of-n, min", 256)),
    ),
    Claim(
        "1.2",
        1,
        "the last step's score aggregates better than the product",
        "37 against 27 at 256",
        ABOVE,
        versus((BEST, 256), ("best-of-n, prod", 256)),
    ),
    Claim(
        "1.3",
        1,
        "summing the scores of equal answers beats the best single one",
        "used throughout, no figure",
        ABOVE,
        versus((BEST, 256), ("best-of-n, naive", 256)),
    ),
    *verifiers_compared("1.4", 64, "PRM 32, majority 25.5 at 64"),
    *verifiers_compared("1.5", 256, "PRM 35, majority 28.8 at 256; comparing verifiers, PRM 37, ORM 34"),
    Claim(
        "1.6a",
        1,
        "the gap between PRM and majority grows with N",
        "0 at 1, 4.8 at 4, 6.5 at 64, 9 at 512",
        ABOVE,
        gap_growth(BEST, "majority", 256, 4),
    ),
    Claim(
        "1.6b",
        1,
        "the gap between PRM and ORM grows with N",
        "drawn, no figure",
        ABOVE,
        gap_growth(BEST, ORM, 256, 4),
    ),
    Claim(
        "1.7",
        1,
        "human step labels (PRM800K) make a PRM that is largely ineffective",
        "no figure",
        why="no human labels exist for the home task: every label here is a rollout's",
    ),
    Claim(
        "1.8",
        1,
        "binary search for the first wrong step labels with fewer rollouts (OmegaPRM)",
        "O(k log M) for O(k M)",
        why="about making labels, which `ttc rollouts` does: this benchmark uses the shipped PRM",
    ),
)

SEARCH_CLAIMS = (
    *(
        Claim(
            f"2.1{letter}",
            2,
            f"beam search is over best-of-N at {budget} generations",
            "drawn: beam is far ahead at small budgets",
            ABOVE,
            versus((BEAM, budget), (BEST, budget)),
            is_must_show=True,
        )
        for letter, budget in (("a", 4), ("b", 16))
    ),
    Claim(
        "2.2",
        2,
        "at large budgets beam search falls below best-of-N",
        "drawn: from about 128 on",
        BELOW,
        versus((BEAM, 256), (BEST, 256)),
    ),
    Claim(
        "2.3",
        2,
        "on easy problems best-of-N wins at 256 (over-optimisation)",
        "bins 1 and 2 at 256: beam 77 and 32, best-of-N 88 and 60",
        BELOW,
        versus((BEAM, 256), (BEST, 256), (0, 1)),
    ),
    Claim(
        "2.4",
        2,
        "on hard problems beam search wins at 256",
        "bins 3 and 4 at 256: beam 34 and 17, best-of-N 23 and 10",
        ABOVE,
        versus((BEAM, 256), (BEST, 256), (2, 3)),
    ),
    Claim(
        "2.5",
        2,
        "on the hardest bin no search makes progress",
        "1 to 3 % at 256",
        FAILING,
        accuracy_in(BEAM, 256, (4,)),
    ),
    Claim(
        "2.6a",
        2,
        "lookahead (k=1) loses to beam search at equal budget",
        "drawn, at every budget",
        BELOW,
        versus(("lookahead k=1", 64), (BEAM, 64)),
    ),
    Claim(
        "2.6b",
        2,
        "lookahead (k=3) loses to beam search at equal budget",
        "drawn, at every budget",
        BELOW,
        versus(("lookahead k=3", 64), (BEAM, 64)),
    ),
    Claim(
        "2.7",
        2,
        "search finds lines that only look right, which a verifier likes",
        "examples in its appendix",
        ABOVE,
        exploits,
    ),
)

OPTIMAL_CLAIMS = (
    Claim(
        "3.1a",
        3,
        "compute-optimal with oracle bins is over best-of-N at 16",
        "33.2 against 25.5",
        ABOVE,
        versus((ORACLE, 16), (BEST, 16)),
    ),
    Claim(
        "3.1b",
        3,
        "compute-optimal with oracle bins is over best-of-N at 64",
        "34.5 against 32",
        ABOVE,
        versus((ORACLE, 64), (BEST, 64)),
    ),
    Claim(
        "3.2",
        3,
        "so it is with predicted bins, at 16",
        "33 against 25.5",
        ABOVE,
        versus((PREDICTED, 16), (BEST, 16)),
    ),
    Claim(
        "3.3a",
        3,
        "a quarter of the generations are enough: 16 for best-of-64 (oracle bins)",
        "up to 4x fewer",
        REACHES,
        versus((ORACLE, 16), (BEST, 64)),
    ),
    Claim(
        "3.3b",
        3,
        "a quarter of the generations are enough: 64 for best-of-256 (oracle bins)",
        "up to 4x fewer",
        REACHES,
        versus((ORACLE, 64), (BEST, 256)),
    ),
    Claim(
        "3.4",
        3,
        "predicted bins lose next to nothing against oracle bins",
        "33.5 against 34.5 at 64",
        CLOSE,
        versus((PREDICTED, 64), (ORACLE, 64)),
    ),
    Claim(
        "3.5",
        3,
        "with a pilot's bins, estimation charged, 64 generations reach best-of-256",
        "not charged in the paper: 33.5 against 35",
        REACHES,
        versus((PILOT, 64), (BEST, 256)),
        is_must_show=True,
    ),
)


def findings(evidence: Evidence) -> list[Finding]:
    """Every claim with its verdict."""
    claims = (*OUR_CLAIMS, *VERIFIER_CLAIMS, *SEARCH_CLAIMS, *OPTIMAL_CLAIMS, *REVISION_CLAIMS, *trade_claims())
    return [judge(claim, evidence) for claim in claims]
