"""From candidates to one answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.types import Candidate

VOTES = ("majority", "weighted", "naive")


def check_vote(rule: str) -> None:
    """Raises ValueError for a name outside VOTES."""
    if rule not in VOTES:
        raise ValueError(f"vote must be one of {', '.join(VOTES)}, got {rule!r}")


def voters_by_answer(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """Indices of the candidates that may vote, by answer, in order of first appearance, which settles ties."""
    voters: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.finish == "eos" and candidate.answer is not None:
            voters.setdefault(candidate.answer, []).append(index)
    return voters


def vote(candidates: Sequence[Candidate], rule: str) -> tuple[str | None, int | None]:
    """The chosen answer and the index of its best candidate; (None, None) where nobody may vote.

    "majority" counts equal answers, "weighted" sums their aggregated scores, "naive" takes the
    answer of the best candidate. Only finished candidates with an answer vote. Equal answers are
    equal strings. Ties go to the earliest candidate. Raises ValueError for another rule.
    """
    check_vote(rule)
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
