"""The figures of the model cards: those of chains of revisions, on made-up attempts."""

from __future__ import annotations

import pytest

from benchmarks.paper.home import reviser_figures
from engine.accounting import Ledger
from engine.types import Candidate, Problem, SearchResult, SearchTree


def result(gold: str, chains: list[str], is_right: bool) -> SearchResult:
    """Chains as texts of one-letter answers, attempt by attempt."""
    candidates = tuple(
        Candidate(chain[place], chain[place], "eos", (), 0.0, 1, (number, *[0] * place))
        for place in range(len(chains[0]))
        for number, chain in enumerate(chains)
    )
    problem = Problem("p", "p", answer=gold)
    answer = gold if is_right else "z"
    return SearchResult(
        problem, answer, candidates, SearchTree([]), Ledger(), "revisions", len(candidates), 0, is_right
    )


def test_figures_of_chains():
    figures = reviser_figures([result("a", ["aab", "abb", "cab"], True), result("a", ["bba", "bbb", "cca"], False)])
    assert figures["accuracy by attempt"] == pytest.approx([2 / 6, 2 / 6, 2 / 6])
    share, low, high = figures["right attempts followed by a wrong one"]
    assert share == pytest.approx(3 / 4)
    assert 0 <= low <= share <= high <= 1
    assert figures["wrong attempts followed by a right one"][0] == pytest.approx(3 / 8)
    assert figures["majority of the first attempts"] == 0.5  # of a, a, c and of b, b, c
    assert figures["majority of all attempts"] == 0.5
