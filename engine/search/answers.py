"""What a search asks of a task: the answer that a completion states, and which answers are right or equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.search.vote import Classify, merge_equal
from engine.types import Candidate

Extract = Callable[[str], str | None]
Grade = Callable[[str, str], bool | None]


@dataclass(frozen=True)
class Answers:
    """How a task reads and judges answers."""

    extract: Extract
    """The answer that a completion states, None where it states none."""

    grade: Grade | None = None
    """`grade(answer, gold)`: whether an answer is right, None where that cannot be told. Default: equal strings are."""

    classify: Classify | None = None
    """The class of each of several answers: those of one class count as one answer in votes. Default: equal strings."""

    def alike(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """The candidates with equal answers written alike, so that votes count them as one."""
        return candidates if self.classify is None else merge_equal(candidates, self.classify)


def is_correct(answer: str | None, gold: str | None, grade: Grade | None) -> bool | None:
    """None where there is no gold answer, or where the grader cannot tell or raises."""
    if gold is None:
        return None
    if answer is None:
        return False
    if grade is None:
        return answer == gold
    try:
        return grade(answer, gold)
    except Exception:  # a grader reads what a model wrote; its failure is a verdict of its own
        return None
