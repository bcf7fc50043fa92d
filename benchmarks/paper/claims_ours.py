"""What this project set out to show on its home task, beside the paper's findings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.paper.cells import EXACT_BEAM, SHIPPED
from benchmarks.paper.claims_revisions import rise
from benchmarks.paper.difficulty import NUM_BINS
from benchmarks.paper.evidence import CHOICES, Evidence
from benchmarks.paper.measured import difference
from benchmarks.paper.rules import ABOVE, NOT_BELOW, Claim, Figures, Rule, Unmeasured, at, at_least, at_most, versus
from engine.results.statistics import bootstrap_interval

BEST, ORM, BEAM = "best-of-n", "best-of-n, ORM", "beam M=4"
NAIVE = "best-of-n, naive"


def over_best_fixed(budget: int) -> Callable[[Evidence], Figures]:
    """Measures the scheduler less the strategy that is best on the very problems that are measured."""

    def measure(evidence: Evidence) -> Figures:
        own = at(evidence, SHIPPED, budget).right
        others = {name: at(evidence, name, budget).right for name in CHOICES if budget in evidence.tables.get(name, {})}
        best = max(others, key=lambda name: others[name].mean())
        parts = {f"{SHIPPED} at {budget}": float(own.mean()), f"{best} at {budget}": float(others[best].mean())}
        return Figures(difference(own, others[best]), parts)

    return measure


def share_of_flops(one: tuple[str, int], other: tuple[str, int]) -> Callable[[Evidence], Figures]:
    """Measures the FLOPs of a series as a share of another's, with an interval over problems.

    The two are paired by problem: a long one costs both more. The interval is that of the ratio's linearisation.
    """

    def measure(evidence: Evidence) -> Figures:
        first, second = (at(evidence, *each).flops for each in (one, other))
        share = first.mean() / second.mean()
        around = share + (first - share * second) / second.mean()
        return Figures([float(share), *bootstrap_interval(around.tolist(), range(len(around)))])

    return measure


def ratios_differ(budget: int) -> Callable[[Evidence], Figures]:
    """Measures what the easy bins' best ratio loses on the hard bins against their own; each is chosen on one half of
    its problems and measured on the other."""

    def measure(evidence: Evidence) -> Figures:
        ratios = {count: pair[0].right for count, pair in evidence.ratios.get(budget, {}).items()}
        members = evidence.binnings["oracle"].members
        if len(ratios) < 2 or len(members) < NUM_BINS:
            raise Unmeasured(f"ratios of revisions at {budget}, in {NUM_BINS} bins")
        easy, hard = np.concatenate(members[:2]), np.concatenate(members[3:])
        gains, picks = [], []
        for side in (0, 1):
            chosen = [_best_ratio(ratios, part[np.arange(len(part)) % 2 != side]) for part in (easy, hard)]
            picks.append(chosen)
            own = hard[np.arange(len(hard)) % 2 == side]
            gains.append(ratios[chosen[1]][own] - ratios[chosen[0]][own])
        gain = np.concatenate(gains)
        note = "; ".join(f"{one} chains for easy, {other} for hard problems" for one, other in picks)
        return Figures(difference(gain, np.zeros_like(gain)), note=note)

    return measure


def _best_ratio(ratios: dict[int, np.ndarray], members: np.ndarray) -> int:
    return max(ratios, key=lambda count: ratios[count][members].mean())


def _ours(number: str, claim: str, rule: Rule, measure: Callable[[Evidence], Figures]) -> Claim:
    return Claim(number, 0, claim, "set by this project", rule, measure, is_must_show=True)


def _beam_over_best(number: str, budget: int, points: float) -> list[Claim]:
    claim = f"beam search is over best-of-N at {budget}"
    easiest = versus((BEAM, budget), (BEST, budget), (0,))
    return [
        _ours(
            number + "a",
            f"{claim} by {100 * points:.0f} points",
            at_least(points),
            versus((BEAM, budget), (BEST, budget)),
        ),
        _ours(number + "b", f"on the easiest fifth it is within a point of it at {budget}", at_least(-0.01), easiest),
    ]


OUR_CLAIMS = (
    *(
        _ours(
            f"0.1{letter}",
            f"the PRM is 15 points over the majority at {budget}",
            at_least(0.15),
            versus((BEST, budget), ("majority", budget)),
        )
        for letter, budget in (("a", 16), ("b", 64))
    ),
    _ours("0.2", "the PRM is no worse than the ORM at 64", NOT_BELOW, versus((BEST, 64), (ORM, 64))),
    _ours("0.3", "the best-scored of 256 is no worse than of 16", NOT_BELOW, versus((NAIVE, 256), (NAIVE, 16))),
    _ours("0.4", "beam search at 256 is no worse than at 64", NOT_BELOW, versus((BEAM, 256), (BEAM, 64))),
    _ours(
        "0.5",
        "at 256 it is within 8 points of the exact verifier's",
        at_least(-0.08),
        versus((BEAM, 256), (EXACT_BEAM, 256)),
    ),
    *_beam_over_best("0.6", 4, 0.04),
    *_beam_over_best("0.7", 16, 0.08),
    *_beam_over_best("0.8", 64, 0.15),
    _ours(
        "0.9a",
        "the scheduler at 64, all charged, is no worse than best-of-256",
        NOT_BELOW,
        versus((SHIPPED, 64), (BEST, 256)),
    ),
    _ours("0.9b", "for a quarter of the FLOPs", at_most(0.25), share_of_flops((SHIPPED, 64), (BEST, 256))),
    _ours("0.10a", "the scheduler at 32 is no worse than best-of-256", NOT_BELOW, versus((SHIPPED, 32), (BEST, 256))),
    _ours("0.10b", "for an eighth of the FLOPs", at_most(0.125), share_of_flops((SHIPPED, 32), (BEST, 256))),
    *(
        _ours(
            f"0.11{letter}",
            f"the scheduler is no worse than every fixed strategy at {budget}",
            NOT_BELOW,
            over_best_fixed(budget),
        )
        for letter, budget in (("a", 16), ("b", 64))
    ),
    _ours("0.12", "pass@1 rises by 5 points along a chain of revisions", at_least(0.05), rise("attempts")),
    _ours("0.13", "the best ratio differs between easy and hard problems", ABOVE, ratios_differ(64)),
)
