"""Figures per problem from run journals: one array for every series and budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.paper.bills import Bills
from benchmarks.paper.pools import Pool
from engine.accounting import Ledger
from engine.results.rows import Row
from engine.results.statistics import bootstrap_interval, mean_interval
from engine.search import Adaptive, vote
from engine.types import Candidate

# Series of a pool: what scores (a way to aggregate the PRM's step scores, the ORM, or the gold answer, which costs
# nothing), and the vote.
POOL_SERIES = {
    "majority": (None, "majority"),
    "best-of-n": ("last", "weighted"),
    "best-of-n, min": ("min", "weighted"),
    "best-of-n, prod": ("prod", "weighted"),
    "best-of-n, naive": ("last", "naive"),
    "best-of-n, ORM": ("orm", "weighted"),
    "best-of-n, ORM, naive": ("orm", "naive"),
    "best-of-n, exact verifier": ("exact", "naive"),
}
ADAPTIVE_SERIES = {"adaptive": Adaptive(), "adaptive, 0.95": Adaptive(confidence=0.95)}


@dataclass(frozen=True)
class Measured:
    """A series at a budget. Arrays are (num_problems,), means over seeds and, for pools, over disjoint windows."""

    right: np.ndarray  # share of the searches that were right, 0..1
    generations: np.ndarray  # spent
    flops: np.ndarray
    verified: np.ndarray  # of `flops`, the verifier's
    num_seeds: int
    chosen: tuple[tuple[str | None, ...], ...] = ()  # per problem, the texts of the chosen answers, as far as kept

    @property
    def accuracy(self) -> list[float]:
        return estimate(self.right)


def estimate(values: np.ndarray) -> list[float]:
    """[mean, low, high] of values within 0..1, one per problem."""
    low, high = mean_interval(values.tolist(), range(len(values)))
    return [float(values.mean()), low, high]


def difference(one: np.ndarray, other: np.ndarray) -> list[float]:
    """[mean, low, high] of the paired difference `one` - `other`, one value per problem."""
    low, high = bootstrap_interval((one - other).tolist(), range(len(one)))
    return [float((one - other).mean()), low, high]


def windows(candidates: Sequence[Candidate], size: int) -> list[Sequence[Candidate]]:
    """The disjoint runs of `size` consecutive samples; the first of them is what a search of that budget returns."""
    return [candidates[start : start + size] for start in range(0, len(candidates) - size + 1, size)]


def vote_right(candidates: Sequence[Candidate], rule: str, gold: str, size: int) -> float:
    """Share of the windows whose vote is right."""
    votes = [vote(window, rule)[0] == gold for window in windows(candidates, size)]
    return sum(votes) / len(votes)


def adaptive_run(strategy: Adaptive, samples: Sequence[Candidate]) -> int:
    """How many of these samples the strategy draws before it stops: what its search would spend."""
    num_drawn = 0
    while num_drawn < len(samples) and (more := strategy.draw(samples[:num_drawn], len(samples) - num_drawn)):
        num_drawn += more
    return num_drawn


def pool_series(pools: Sequence[Sequence[Pool]], bills: dict[str | None, Sequence[Bills]], budgets: Sequence[int]):
    """{series: {budget: Measured}} of `pools`, one list per seed with one pool per problem.

    `bills` has those of every problem by verifier; a series whose verifier it lacks is left out.
    """
    made: dict[str, dict[int, Measured]] = {}
    for series, (scored_by, rule) in POOL_SERIES.items():
        verifier = {None: None, "exact": None, "orm": "orm"}.get(scored_by, "prm")
        if verifier in bills:
            cells = [
                [
                    _votes(pool, bill, scored_by or "last", rule, budgets)
                    for pool, bill in zip(seed, bills[verifier], strict=True)
                ]
                for seed in pools
            ]
            made[series] = _measured(cells, budgets)
    for series, strategy in ADAPTIVE_SERIES.items():
        cells = [
            [_adaptive(pool, bill, strategy, budgets) for pool, bill in zip(seed, bills["prm"], strict=True)]
            for seed in pools
        ]
        made[series] = _measured(cells, budgets)
    return made


def _measured(cells: list, budgets: Sequence[int]) -> dict[int, Measured]:
    """Means over seeds of (right, generations, policy FLOPs, verifier FLOPs, chosen) by seed, problem and budget."""
    made = {}
    for number, budget in enumerate(budgets):
        figures = np.array([[problem[number][:4] for problem in seed] for seed in cells], dtype=float).mean(axis=0)
        chosen = tuple(tuple(seed[index][number][4] for seed in cells) for index in range(len(figures)))
        right, generations, policy, judge = figures.T
        made[budget] = Measured(right, generations, policy + judge, judge, len(cells), chosen)
    return made


def _votes(pool: Pool, bills: Bills, scored_by: str, rule: str, budgets: Sequence[int]) -> list[tuple]:
    """Per budget: share right, generations, policy FLOPs, verifier FLOPs, and what the first window chose."""
    candidates = pool.candidates(scored_by)
    policy, judge = np.array([bills.of_answer(each) for each in candidates]).mean(axis=0)
    made = []
    for budget in budgets:
        right = pool.pass_rate if budget == 1 else vote_right(candidates, rule, pool.gold, budget)
        best = vote(candidates[:budget], rule)[1]
        cost = [prompt + budget * each for prompt, each in zip(bills.of_prompt, (policy, judge), strict=True)]
        made.append((right, budget, *cost, None if best is None else candidates[best].text))
    return made


def _adaptive(pool: Pool, bills: Bills, strategy: Adaptive, budgets: Sequence[int]) -> list[tuple]:
    """The same as `_votes`, without the chosen texts."""
    candidates = pool.candidates()
    made = []
    for budget in budgets:
        runs = []
        for window in windows(candidates, budget):
            drawn = window[: adaptive_run(strategy, window)]
            answer, num_rounds = vote(drawn, strategy.vote)[0], -(-len(drawn) // strategy.batch)
            runs.append((answer == pool.gold, len(drawn), *bills.of_answers(drawn, num_rounds)))
        made.append((*np.mean(runs, axis=0), None))
    return made


def cell_measured(rows: Sequence[dict[int, Row]]) -> Measured:
    """The figures of one cell; `rows` has its rows by position, one dictionary per seed."""
    figures = [[_figures(seed[index]) for index in sorted(seed)] for seed in rows]
    right, generations, flops, verified = np.array(figures, dtype=float).mean(axis=0).T
    chosen = tuple(tuple(seed[index]["chosen"] for seed in rows) for index in sorted(rows[0]))
    return Measured(right, generations, flops, verified, len(rows), chosen)


def _figures(row: Row) -> tuple[float, ...]:
    bill = Ledger.from_dict(row["ledger"])
    return row["correct"], row["generations"], bill.total_flops, bill.flops["verified"]


def flat(tables: dict[str, dict[int, Measured]]) -> Iterator[tuple[str, int, Measured]]:
    """(series, budget, figures) of all that has been measured."""
    for series, budgets in tables.items():
        for budget, measured in sorted(budgets.items()):
            yield series, budget, measured
