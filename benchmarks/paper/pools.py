"""Pools: a problem's samples, drawn once, from which every parallel strategy at every budget follows.

A pool is kept as its distinct answers and, per sample, which of them it is: an answer's text fixes its tokens
and therefore its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.search import merge_equal
from engine.tasks import Task
from engine.types import Candidate, SearchResult
from engine.verifiers import aggregate

Row = dict[str, object]
_PARTS = ("text", "answer", "finish", "scores", "num_tokens")


def pool_row(result: SearchResult) -> Row:
    """The samples of one problem as a row of a run ledger."""
    distinct: dict[tuple, int] = {}
    picks = []
    for each in result.candidates:
        picks.append(distinct.setdefault(tuple(getattr(each, part) for part in _PARTS), len(distinct)))
    return {
        "id": result.problem.id,
        "seed": result.seed,
        "strategy": result.strategy,
        "gold": result.problem.answer,
        **{f"{part}s": [key[index] for key in distinct] for index, part in enumerate(_PARTS)},
        "picks": picks,
        "flops": result.ledger.as_dict()["flops"],
    }


@dataclass(frozen=True)
class Pool:
    """A problem's samples in the order in which they were drawn."""

    gold: str
    distinct: tuple[Candidate, ...]  # their addresses and aggregated scores are not set
    picks: tuple[int, ...]  # of `distinct`, one per sample
    orm_scores: tuple[float, ...] | None = None  # one per distinct answer

    @classmethod
    def from_row(cls, row: Row, orm: Row | None = None) -> Pool:
        columns = zip(*(row[f"{part}s"] for part in _PARTS), strict=True)
        distinct = tuple(
            Candidate(text, answer, finish, tuple(scores), 0.0, num_tokens, ())
            for text, answer, finish, scores, num_tokens in columns
        )
        return cls(row["gold"], distinct, tuple(row["picks"]), None if orm is None else tuple(orm["scores"]))

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
        """The samples as a search would return them, with `agg_score` by `scored_by`: a way to aggregate
        the PRM's step scores, or "orm". The scores of "orm" must be there."""
        if scored_by == "orm":
            assert self.orm_scores is not None, "the pool has been scored by an ORM"
            scores = list(self.orm_scores)
        else:
            scores = [aggregate(each.scores, scored_by) for each in self.distinct]
        made = [
            Candidate(each.text, each.answer, each.finish, each.scores, score, each.num_tokens, ())
            for each, score in zip(self.distinct, scores, strict=True)
        ]
        return [made[pick] for pick in self.picks]


def merged(candidates: Sequence[Candidate], task: Task) -> list[Candidate]:
    """As the loop hands them to a vote: equal answers written alike."""
    return list(candidates) if task.classify is None else merge_equal(candidates, task.classify)
