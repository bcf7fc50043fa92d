"""The small policy with test-time compute against one greedy answer of the larger one, at equal total FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.paper.evidence import Evidence
from benchmarks.paper.measured import Measured, difference
from engine.accounting import Exchange
from engine.accounting.exchange import PAPER_TOKEN_RATIOS

REGIMES = ("R << 1", "R ~ 1", "R >> 1")  # the ratios of PAPER_TOKEN_RATIOS, in order
GROUPS = ("easy", "medium", "hard")  # two, one and two fifths of the problems, by pass@1 of the bins' pool
SIDES = {"PRM search": "compute-optimal, oracle", "revisions": "revisions, best ratio by bin"}


@dataclass(frozen=True)
class Trade:
    """One regime, one group of problems, one way to spend test-time compute."""

    version: str
    regime: str
    token_ratio: float
    num_generations: int  # that the small policy may sample for the FLOPs of the larger one
    budget: int  # of them, measured
    side: str
    group: str
    small: float  # accuracy, 0..1
    large: float
    difference: list[float]  # [mean, low, high]

    @property
    def relative_gain(self) -> float | None:
        """The gain over the larger policy's accuracy, as the paper states it; None where that policy is never right."""
        return (self.small - self.large) / self.large if self.large else None


def trades(evidence: Evidence) -> list[Trade]:
    """Every regime, side and group that was measured; an empty list without a larger policy."""
    if evidence.large is None:
        return []
    groups, made = difficulty_groups(evidence.binnings["oracle"].eases), []
    for version, ratios in PAPER_TOKEN_RATIOS.items():
        for regime, ratio in zip(REGIMES, ratios, strict=True):
            number = Exchange.from_ratios(evidence.large.size_ratio, ratio, version).num_generations
            for side, series in SIDES.items():
                budgets = [budget for budget in evidence.tables.get(series, {}) if budget <= number]
                if budgets:
                    measured = evidence.tables[series][max(budgets)]
                    facts = (version, regime, ratio, number, max(budgets), side)
                    made += [
                        _trade(facts, name, measured, evidence.large.right, members)
                        for name, members in zip(GROUPS, groups, strict=True)
                    ]
    return made


def _trade(facts: tuple, name: str, measured: Measured, large: np.ndarray, members: np.ndarray) -> Trade:
    own, other = measured.right[members], large[members]
    return Trade(*facts, name, float(own.mean()), float(other.mean()), difference(own, other))


def difficulty_groups(eases: np.ndarray) -> list[np.ndarray]:
    """Positions of the easiest two fifths, the middle fifth and the hardest two fifths; equals in input order."""
    ranked = np.argsort(-eases, kind="stable")
    cuts = [round(len(ranked) * 2 / 5), round(len(ranked) * 3 / 5)]
    return [np.sort(part) for part in np.split(ranked, cuts)]
