"""Rows and pages of real searches, on a fake policy and verifier."""

import pytest

from engine.reports import report_html
from engine.results import result_row, row_line
from engine.results.pools import pool_vote
from engine.results.rows import parse_row
from engine.search import DVTS, BeamSearch, BestOfN, Lookahead, Majority
from tests.search.fakes import search

STRATEGIES = [
    Majority(),
    BestOfN(),
    BestOfN(vote="naive"),
    BeamSearch(width=2),
    Lookahead(width=2, lookahead=1),
    DVTS(width=2),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_search_makes_a_row_that_reads_back_and_is_drawn(strategy):
    result = search(strategy, 8)
    row = result_row(result, with_tree=True)
    assert parse_row(row_line(row)) == row
    assert len(row["completions"]) == len(result.candidates) > 0
    finals = [node for node in row["tree"] if node["status"] == "final"]
    assert sorted(node["answer"] or "" for node in finals) == sorted(answer or "" for answer in row["answers"])
    (best,) = [node for node in row["tree"] if node.get("best")]
    assert best["answer"] == row["pred"]
    page = report_html([row])
    assert page.count('class="node root best"') == 1
    assert page.count("node final") >= len(finals)


@pytest.mark.parametrize("strategy", STRATEGIES[:3], ids=repr)
def test_the_vote_of_a_pool_is_found_again(strategy):
    rows = [result_row(search(strategy, 12, seed=seed)) for seed in range(8)]
    assert pool_vote(strategy.name, rows) == strategy.vote
