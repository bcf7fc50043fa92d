"""Pools: a problem's samples, drawn once, from which every parallel strategy at every budget follows.

A pool is kept as its distinct answers and, per sample, which of them it is: an answer's text fixes its tokens
and therefore its scores. These are float32, and written with as few digits as tell one from the next: half of the
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.search import merge_equal
from engine.search.aggregate import aggregate
from engine.tasks import Task
from engine.types import Candidate, SearchResult

Row = dict[str, object]
# What makes two samples the same one, and the columns of a row that hold it.
_PARTS = {"text": "texts", "answer": "answers", "finish": "finishes", "scores": "scores", "num_tokens": "num_tokens"}


def pool_row(result: SearchResult) -> Row:
    """The samples of one problem as a row of a run journal."""
    distinct: dict[tuple, int] = {}
    picks = []
    for each in result.candidates:
        picks.append(distinct.setdefault(tuple(getattr(each, part) for part in _PARTS), len(distinct)))
    columns = {column: [key[index] for key in distinct] for index, column in enumerate(_PARTS.values())}
    columns["scores"] = [short_scores(scores) for scores in columns["scores"]]
    return {
        "id": result.problem.id,
        "seed": result.seed,
        "strategy": result.strategy,
        "gold": result.problem.answer,
        **columns,
        "picks": picks,
        "flops": result.ledger.as_dict()["flops"],
    }


def short_scores(scores: Sequence[float]) -> list[float]:
    """A model's scores with no more digits than float32 needs; `_whole` has them back, bit for bit."""
    return [float(str(np.float32(score))) for score in scores]


def _whole(scores: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.asarray(scores, np.float32).tolist())


@dataclass(frozen=True)
class Pool:
    """A problem's samples in the order in which they were drawn."""

    gold: str
    distinct: tuple[Candidate, ...]  # their addresses and aggregated scores are not set
    picks: tuple[int, ...]  # of `distinct`, one per sample
    judged: tuple[float, ...] | None = None  # by the ORM, one score per distinct answer

    @classmethod
    def from_row(cls, row: Row, orm: Row | None = None) -> Pool:
        """`orm`: the row of its scores, where there is one."""
        columns = zip(*(row[column] for column in _PARTS.values()), strict=True)
        distinct = tuple(
            Candidate(text, answer, finish, _whole(scores), 0.0, num_tokens, ())
            for text, answer, finish, scores, num_tokens in columns
        )
        judged = None if orm is None else _whole(orm["scores"])
        return cls(row["gold"], distinct, tuple(row["picks"]), judged)

    @property
    def size(self) -> int:
        return len(self.picks)

    @cached_property
    def rights(self) -> tuple[bool, ...]:
        """Whether each sample is right."""
        return tuple(self.distinct[pick].answer == self.gold for pick in self.picks)

    @property
    def pass_rate(self) -> float:
        """pass@1, over all samples."""
        return sum(self.rights) / self.size

    def candidates(self, scored_by: str = "last") -> list[Candidate]:
        """The samples as a search would return them, with `agg_score` by `scored_by`.

        That is a way to aggregate the PRM's step scores, "orm", which has judged them, or "exact": 1.0 if right.
        """
        if scored_by == "orm":
            scores = list(self.judged)
        elif scored_by == "exact":
            scores = [float(each.answer == self.gold) for each in self.distinct]
        else:
            scores = [aggregate(each.scores, scored_by) for each in self.distinct]
        made = [
            Candidate(each.text, each.answer, each.finish, each.scores, score, each.num_tokens, ())
            for each, score in zip(self.distinct, scores, strict=True)
        ]
        return [made[pick] for pick in self.picks]


def merged(candidates: Sequence[Candidate], task: Task) -> list[Candidate]:
    """The candidates as the search loop hands them to a vote: equal answers written alike."""
    return list(candidates) if task.classify is None else merge_equal(candidates, task.classify)
