"""What a notebook shows: results, candidates, bills, and searches that run."""

import asyncio
import re
from html import unescape

import pytest

from engine import BeamSearch, BestOfN, Engine, Revisions

PROBLEM = {"problem": "?5?2?=c;d3?", "answer": "0", "id": "<b>"}
OPTIONS = {"budget": 8, "seed": 1}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("home")


def texts(page: str) -> list[str]:
    """What stands between the tags."""
    return [unescape(each).strip() for each in re.findall(r">([^<]+)<", page.split("</style>")[1])]


def boxes(page: str) -> int:
    return page.count('class="box"')


@pytest.mark.parametrize("strategy", [BeamSearch(width=2), BestOfN(), Revisions(parallel=2)])
def test_a_result_shows_its_tree_answer_and_bill(engine, strategy):
    (result,) = engine.search([PROBLEM], strategy, **OPTIONS)
    page = result._repr_html_()
    shown = texts(page)
    assert result.answer in shown
    assert PROBLEM["problem"] in shown
    assert f"{result.num_generations} of 8" in shown
    assert f"{result.ledger.tokens['generated']:,}" in shown
    assert boxes(page) == len(result.tree.nodes)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched"


def test_candidates_and_bills(engine):
    (result,) = engine.search([{**PROBLEM, "problem": "?5?2?=c;d3?"}], BestOfN(), **OPTIONS)
    candidate = result.candidates[0]
    shown = texts(candidate._repr_html_())
    assert candidate.answer in shown
    assert candidate.text.strip() in shown
    assert f"{result.ledger.tokens['verified']:,}" in texts(result.ledger._repr_html_())


class Shown:
    """What IPython's `display` returns."""

    def __init__(self):
        self.pages = []

    def update(self, data, *, raw):
        assert raw
        self.pages.append(data["text/html"])

    def __call__(self, data, *, raw, display_id):
        assert display_id
        self.update(data, raw=raw)
        return self


@pytest.mark.parametrize("strategy", [BeamSearch(width=2), BestOfN(), Revisions(parallel=2)])
def test_a_handle_is_shown_as_it_goes_on(engine, strategy):
    from engine.reports.notebook import show_live

    async def run():
        handle, shown = engine.submit(PROBLEM, strategy, **OPTIONS), Shown()
        await show_live(handle, shown)
        return handle, shown.pages

    handle, pages = asyncio.run(run())
    result = handle.result()
    assert len(pages) >= 2
    assert boxes(pages[-1]) == len(result.tree.nodes) >= boxes(pages[0])
    assert "running" in texts(pages[0])
    assert pages[-1] == result._repr_html_()
    assert show_live(handle, Shown()) is None, "no loop runs"
    assert handle._repr_html_() == pages[-1]
