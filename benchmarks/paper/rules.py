"""How a finding of the paper is held against ours, and the verdicts that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.paper.evidence import Evidence
from benchmarks.paper.measured import Measured, difference, estimate

MARGIN = 0.02  # of "reaches": set before anything was measured
REPLICATED, NOT_REPLICATED, NOT_COMPARABLE = "replicated", "not replicated", "not comparable"


class Unmeasured(Exception):
    """What a finding needs has not been run; the text says what."""


@dataclass(frozen=True)
class Figures:
    """What ours came out as: the number that the rule looks at, with its 95 % interval, and its parts."""

    value: list[float]  # [mean, low, high], 0..1 or a difference of such
    parts: dict[str, float] = field(default_factory=dict)  # accuracies or shares, 0..1
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """`decide` turns an interval into (is it replicated, why)."""

    text: str
    decide: Callable[[list[float]], tuple[bool, str]]
    is_difference: bool = True  # what it looks at, else a share


def at_least(least: float) -> Rule:
    """A mean of at least so much; if that is over 0, the interval has to lie above 0 too."""

    def decide(value: list[float]) -> tuple[bool, str]:
        mean, low, _ = value
        if mean < least:
            return False, f"{100 * mean:+.1f} points, {100 * least:+.0f} were asked"
        return (low > 0 or least <= 0), f"{100 * mean:+.1f} points" + (", the interval reaches 0" if low <= 0 else "")

    return Rule(f"replicated if the difference is at least {100 * least:+.0f} points", decide)


def at_most(most: float) -> Rule:
    """A share whose interval lies at or under `most`."""

    def decide(value: list[float]) -> tuple[bool, str]:
        return value[2] <= most, f"{100 * value[0]:.1f} %, at most {100 * most:.1f} were asked"

    return Rule(f"replicated if the interval of the share lies under {100 * most:.1f} %", decide, False)


def _not_below(value: list[float]) -> tuple[bool, str]:
    if value[2] >= 0:
        return True, "the interval does not lie below 0"
    return False, "the interval lies below 0"


def _above(value: list[float]) -> tuple[bool, str]:
    _, low, high = value
    if low > 0:
        return True, "the interval lies above 0"
    return False, "the interval excludes 0 in the other direction" if high < 0 else "the interval straddles 0"


def _below(value: list[float]) -> tuple[bool, str]:
    is_below, why = _above([-value[0], -value[2], -value[1]])
    return is_below, why.replace("above", "below")


def _reaches(value: list[float]) -> tuple[bool, str]:
    if value[1] > -MARGIN:
        return True, f"the interval lies above {-100 * MARGIN:.0f} points"
    return False, f"the interval does not exclude a loss of {100 * MARGIN:.0f} points"


def _not_above(value: list[float]) -> tuple[bool, str]:
    if value[1] <= 0:
        return True, "the interval does not lie above 0"
    return False, "the interval lies above 0"


def _close(value: list[float]) -> tuple[bool, str]:
    is_close = value[1] > -MARGIN and value[2] < MARGIN
    return is_close, f"the interval lies {'' if is_close else 'not '}within {100 * MARGIN:.0f} points of 0"


def _share(value: list[float]) -> tuple[bool, str]:
    if value[1] > 0.1:
        return True, "the interval lies above 10 %"
    return False, "the interval does not lie above 10 %"


def _failing(value: list[float]) -> tuple[bool, str]:
    if value[2] < 0.1:
        return True, "the interval lies below 10 %"
    return False, "the interval does not lie below 10 %"


ABOVE = Rule("replicated if the interval of the difference lies above 0", _above)
BELOW = Rule("replicated if the interval of the difference lies below 0", _below)
REACHES = Rule(f"replicated if the interval of the difference excludes a loss of {100 * MARGIN:.0f} points", _reaches)
NOT_BELOW = Rule("replicated if the interval of the difference does not lie below 0", _not_below)
NOT_ABOVE = Rule("replicated if the interval of the gain does not lie above 0", _not_above)
CLOSE = Rule(f"replicated if the interval of the difference lies within {100 * MARGIN:.0f} points of 0", _close)
SHARE = Rule("replicated if the interval of the share lies above 10 %", _share, False)
FAILING = Rule("replicated if the interval of the accuracy lies below 10 %", _failing, False)


@dataclass(frozen=True)
class Claim:
    """One finding of the paper. Without `measure` it cannot be held against ours, for the reason in `why`."""

    id: str
    section: int
    claim: str
    paper: str  # its figures
    rule: Rule | None = None
    measure: Callable[[Evidence], Figures] | None = None
    why: str = ""
    is_must_show: bool = False  # one that this project set out to show


@dataclass(frozen=True)
class Finding:
    """A claim and what became of it."""

    claim: Claim
    verdict: str
    why: str
    figures: Figures | None = None

    def as_dict(self) -> dict[str, object]:
        claim, figures = self.claim, self.figures
        return {
            "id": claim.id,
            "section": claim.section,
            "claim": claim.claim,
            "paper": claim.paper,
            "ours": None if figures is None else figures.value,
            "parts": {} if figures is None else figures.parts,
            "note": "" if figures is None else figures.note,
            "verdict": self.verdict,
            "why": self.why,
            "rule": None if claim.rule is None else claim.rule.text,
            "is_difference": claim.rule is not None and claim.rule.is_difference,
            "must_show": claim.is_must_show,
        }


def judge(claim: Claim, evidence: Evidence) -> Finding:
    """The verdict that the claim's own rule gives."""
    if claim.measure is None:
        return Finding(claim, NOT_COMPARABLE, claim.why)
    try:
        figures = claim.measure(evidence)
    except Unmeasured as reason:
        return Finding(claim, NOT_COMPARABLE, f"not run: {reason}")
    is_replicated, why = claim.rule.decide(figures.value)
    return Finding(claim, REPLICATED if is_replicated else NOT_REPLICATED, why, figures)


# -- what claims measure ----------------------------------------------------------------------


def at(evidence: Evidence, series: str, budget: int) -> Measured:
    """Raises Unmeasured where the series was not run at that budget."""
    measured = evidence.tables.get(series, {}).get(budget)
    if measured is None:
        raise Unmeasured(f"{series} at {budget} generations")
    return measured


def members(evidence: Evidence, bins: tuple[int, ...] | None) -> np.ndarray:
    """Problems of the named oracle quintiles (0 the easiest), or all. Raises Unmeasured where bins were joined."""
    if bins is None:
        return np.arange(evidence.num_problems)
    found = evidence.binnings["oracle"].members
    if len(found) < 5:
        raise Unmeasured(f"five bins, of problems whose pass@1 gives {len(found)}")
    return np.sort(np.concatenate([found[each] for each in bins]))


def versus(
    one: tuple[str, int], other: tuple[str, int], bins: tuple[int, ...] | None = None
) -> Callable[[Evidence], Figures]:
    """Measures (series, budget) against another, on all problems or those of some oracle bins."""

    def measure(evidence: Evidence) -> Figures:
        chosen = members(evidence, bins)
        first, second = (at(evidence, *each).right[chosen] for each in (one, other))
        names = [f"{series} at {budget}" for series, budget in (one, other)]
        parts = {name: float(each.mean()) for name, each in zip(names, (first, second), strict=True)}
        return Figures(difference(first, second), parts)

    return measure


def accuracy_in(series: str, budget: int, bins: tuple[int, ...]) -> Callable[[Evidence], Figures]:
    """Measures the accuracy of a series in some oracle bins."""
    return lambda evidence: Figures(estimate(at(evidence, series, budget).right[members(evidence, bins)]))


def gap_growth(one: str, other: str, large: int, small: int) -> Callable[[Evidence], Figures]:
    """Measures how much more one series is ahead of another at a large budget than at a small one."""

    def measure(evidence: Evidence) -> Figures:
        gaps = [at(evidence, one, budget).right - at(evidence, other, budget).right for budget in (large, small)]
        parts = {f"gap at {budget}": float(gap.mean()) for budget, gap in zip((large, small), gaps, strict=True)}
        return Figures(difference(*gaps), parts)

    return measure
