"""Revisions: accuracy along a chain, what revising does to right answers, and votes over all attempts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.paper.measured import Measured, cell_measured, estimate
from engine.results.rows import Row
from engine.results.statistics import bootstrap_interval
from engine.search import vote
from engine.types import Candidate

MAX_ATTEMPTS = 64


@dataclass(frozen=True)
class Attempts:
    """Whether each attempt of each chain was right: {problem: [chain of bools, oldest first]}."""

    chains: dict[int, list[list[bool]]]

    @classmethod
    def of(cls, cells: Iterable[dict[int, Row]], golds: Sequence[str]) -> Attempts:
        """The attempts in the rows of cells. A chain that several cells have in common is taken once, the longest."""
        found: dict[int, dict[tuple, list[bool]]] = {}
        for rows in cells:
            for index, row in rows.items():
                own: dict[tuple, list[bool]] = {}
                for chain, answer in zip(row["chains"], row["answers"], strict=True):
                    own.setdefault((row["seed"], chain), []).append(answer == golds[index])
                kept = found.setdefault(index, {})
                for key, chain in own.items():
                    kept[key] = max(chain, kept.get(key, []), key=len)
        return cls({index: list(chains.values()) for index, chains in sorted(found.items())})

    def pass_rates(self) -> list[dict]:
        """pass@1 by number of the attempt, from 1, over the chains that are as long."""
        points = []
        for attempt in range(MAX_ATTEMPTS):
            rights, problems = [], []
            for index, chains in self.chains.items():
                longer = [chain[attempt] for chain in chains if len(chain) > attempt]
                if longer:
                    rights.append(float(np.mean(longer)))
                    problems.append(index)
            if len(problems) == len(self.chains) > 0:
                points.append({"attempt": attempt + 1, "accuracy": estimate(np.array(rights))})
        return points

    def mean_right(self, first: int, last: int) -> np.ndarray:
        """(num_problems,) share right of the attempts first .. last (from 1, both included)."""
        return np.array(
            [
                np.mean([right for chain in chains for right in chain[first - 1 : last]])
                for chains in self.chains.values()
            ]
        )

    @property
    def longest(self) -> int:
        """Attempts that every problem has a chain of."""
        return min(max(map(len, chains)) for chains in self.chains.values())

    def turned(self, is_right: bool) -> list[float] | None:
        """[share, low, high] of right (or wrong) attempts whose next one is not; None where there are none."""
        turns, problems = [], []
        for index, chains in self.chains.items():
            for chain in chains:
                for before, after in pairwise(chain):
                    if before == is_right:
                        turns.append(float(after != before))
                        problems.append(index)
        if not turns:
            return None
        return [float(np.mean(turns)), *bootstrap_interval(turns, problems)]


def ratio_label(num_chains: int, budget: int) -> str:
    """Sequential to parallel, as the paper states it: 4:1 of 64 generations are 4 chains of 16 attempts."""
    sequential = budget // num_chains
    if sequential >= num_chains:
        return f"{sequential // num_chains}:1"
    return f"1:{num_chains // sequential}"


def by_majority(rows: Sequence[dict[int, Row]], golds: Sequence[str]) -> Measured:
    """The flat majority over all answers of all chains, in the place of the vote that was run."""
    run = cell_measured(rows)
    right = [[_majority(seed[index]) == golds[index] for index in sorted(seed)] for seed in rows]
    flops = run.flops - run.verified  # it scores nothing
    return Measured(np.mean(right, axis=0), run.generations, flops, np.zeros_like(flops), run.num_seeds)


def _majority(row: Row) -> str | None:
    """The majority over a row's answers, which are in order of attempts: ties go to the earlier ones."""
    pairs = zip(row["answers"], row["finishes"], strict=True)
    return vote([Candidate("", answer, finish, (), 0.0, 0, ()) for answer, finish in pairs], "majority")[0]
