"""The votes that choose one answer among candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.errors import UserError
from engine.types import FINISHED, Candidate

VOTES = ("majority", "weighted", "naive")
REVISION_VOTES = ("hierarchical", *VOTES)
Classify = Callable[[Sequence[str]], Sequence[int]]  # the class of each answer; equal answers share one


def check_vote(rule: str, votes: Sequence[str] = VOTES) -> None:
    """Raises UserError for a name outside `votes`."""
    if rule not in votes:
        raise UserError(f"vote must be one of {', '.join(votes)}, got {rule!r}")


def merge_equal(candidates: Sequence[Candidate], classify: Classify) -> list[Candidate]:
    """The candidates with equal answers written alike, as the first of them is: 1/2, 0.5 become 1/2, 1/2.

    Votes and reports count equal strings, so this is what makes them count equal answers as one.
    """
    answers = list(dict.fromkeys(each.answer for each in candidates if each.answer is not None))
    classes = classify(answers) if len(answers) > 1 else range(len(answers))
    first_of_class: dict[int, str] = {}
    spelling = {answer: first_of_class.setdefault(each, answer) for answer, each in zip(answers, classes, strict=True)}
    return [replace(each, answer=spelling.get(each.answer)) for each in candidates]


def voters_by_answer(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """Indices of the candidates that may vote, by answer, in order of first appearance, which settles ties."""
    voters: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.finish in FINISHED and candidate.answer is not None:
            voters.setdefault(candidate.answer, []).append(index)
    return voters


def vote(candidates: Sequence[Candidate], rule: str) -> tuple[str | None, int | None]:
    """The chosen answer and the index of its best candidate; (None, None) where nobody may vote.

    "majority" counts equal answers, "weighted" sums their aggregated scores, "naive" takes the
    answer of the best candidate, "hierarchical" is a weighted vote inside each chain of revisions and
    then one over the chains. Only finished candidates with an answer vote. Equal answers are
    equal strings (see `merge_equal`). Ties go to the earliest candidate. Raises UserError for another rule.
    """
    check_vote(rule, REVISION_VOTES)
    if rule == "hierarchical":
        return _vote_of_chains(candidates)
    voters = voters_by_answer(candidates)
    if not voters:
        return None, None

    def score(index: int) -> float:
        return candidates[index].agg_score

    if rule == "naive":
        best = max(sorted(index for indices in voters.values() for index in indices), key=score)
        return candidates[best].answer, best
    if rule == "majority":
        answer = max(voters, key=lambda answer: len(voters[answer]))
    else:  # fsum: the sum must not depend on the order of the candidates
        answer = max(voters, key=lambda answer: math.fsum(map(score, voters[answer])))
    return answer, max(voters[answer], key=score)


def _vote_of_chains(candidates: Sequence[Candidate]) -> tuple[str | None, int | None]:
    """Each chain's answer by a weighted vote, and a weighted vote over the best candidates of these answers.

    A chain counts with one score, whatever its number of attempts (Snell et al. 2024, section 6.2).
    """
    chains: dict[int, list[int]] = {}
    for index, candidate in enumerate(candidates):
        chains.setdefault(candidate.address[0], []).append(index)
    found = [(members, vote([candidates[index] for index in members], "weighted")[1]) for members in chains.values()]
    heads = sorted(members[best] for members, best in found if best is not None)
    answer, best = vote([candidates[index] for index in heads], "weighted")
    return answer, None if best is None else heads[best]
