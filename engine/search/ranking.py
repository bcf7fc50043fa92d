"""The distinct answers of a search, best first."""

from __future__ import annotations

from engine.search.vote import voters_by_answer
from engine.types import FINISHED, SearchResult


def ranked(result: SearchResult) -> list[int]:
    """The best candidate of each answer: first of the one that the vote chose, then by score, then by votes.

    Where no answer was stated, the candidate of the highest score; no candidate at all where there is none.
    """
    candidates, voters = result.candidates, voters_by_answer(result.candidates)
    best = {answer: max(each, key=lambda i: candidates[i].agg_score) for answer, each in voters.items()}
    if not best:
        whole = [i for i, each in enumerate(candidates) if each.finish != "error"]
        return sorted(whole, key=lambda i: (candidates[i].finish not in FINISHED, -candidates[i].agg_score))[:1]
    if result.answer is not None and result.tree.best is not None:  # of its candidates the one that the vote names
        address = result.tree.nodes[result.tree.best].address
        best[result.answer] = next(i for i, each in enumerate(candidates) if each.address == address)
    votes = {answer: len(each) for answer, each in voters.items()}
    order = sorted(best, key=lambda each: (each != result.answer, -candidates[best[each]].agg_score, -votes[each]))
    return [best[answer] for answer in order]
