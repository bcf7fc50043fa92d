"""Texts that end the answers of a search: what follows them is neither sampled, nor scored, nor part of an answer."""

from __future__ import annotations

import pytest

from engine import BeamSearch, BestOfN, Engine, Lookahead, Majority, Revisions
from engine.config import SearchConfig
from engine.errors import UserError
from engine.prompts.stops import before_stops
from tests.tiny import tiny_policy, tiny_prm, tiny_trunk_head

PROBLEM = "?3?5?=a;b2?1?4?"
STOPS = ("b", "4?", "=3")


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    folder = tmp_path_factory.mktemp("stops")
    policy, head = tiny_policy(folder / "policy"), tiny_trunk_head(folder / "head")
    return Engine.load(policy, prm=tiny_prm(folder / "prm"), trunk_head=head, reviser=policy, num_blocks=4096)


def search(engine: Engine, strategy, stops=(), **more):
    config = SearchConfig(12, seed=1, max_tokens=40, stop_texts=stops, **more)
    (result,) = engine.search([PROBLEM], strategy, config=config)
    engine.policy.runner.tree.check_integrity()
    return result


@pytest.mark.parametrize("strategy", [Majority(), BestOfN()], ids=lambda each: each.name)
def test_answers_are_those_without_stops_cut(engine, strategy):
    free, stopped = search(engine, strategy), search(engine, strategy, STOPS)
    by_address = {each.address[:1]: each for each in free.candidates}
    num_stopped = 0
    for each in stopped.candidates:
        whole = by_address[each.address[:1]].text
        assert each.text == before_stops(whole, STOPS)
        if each.text != whole:
            num_stopped += 1
            assert (each.finish, each.answer) == ("stop", engine.task.extract(each.text))
            assert len(each.scores) == (0 if strategy == Majority() else sum(map(bool, each.text.split("\n"))))
    assert num_stopped > 6
    assert stopped.ledger.tokens["generated"] < free.ledger.tokens["generated"]


BY_STEPS = [BeamSearch(width=2), Lookahead(width=2, lookahead=2), Revisions(parallel=2)]


@pytest.mark.parametrize("strategy", BY_STEPS, ids=lambda each: each.name)
def test_searches_of_steps_and_of_revisions(engine, strategy):
    found = search(engine, strategy, STOPS)
    assert not any(stop in each.text for each in found.candidates for stop in STOPS)
    ended = [each for each in found.candidates if each.finish == "stop"]
    assert ended
    assert all(each.text.count("\n") <= len(each.scores) for each in ended)
    again = search(engine, strategy, STOPS)
    assert [each.text for each in again.candidates] == [each.text for each in found.candidates]


def test_a_stop_over_several_steps(engine):
    """Its first line's end belongs to a step before the one that completes it."""
    whole = search(engine, Majority()).candidates
    stop = next(each.text[place : place + 3] for each in whole if 2 < (place := each.text.find("\n")) < 30)
    assert stop.startswith("\n")
    for strategy in (Majority(), BeamSearch(width=4)):
        found = search(engine, strategy, (stop,))
        ended = [each for each in found.candidates if each.finish == "stop"]
        assert ended or strategy != Majority()
        assert not any(stop in each.text or each.text.endswith(stop[:2]) for each in ended)


def test_no_stop_changes_nothing(engine):
    free, never = search(engine, BeamSearch()), search(engine, BeamSearch(), ("never said",))
    assert [each.text for each in free.candidates] == [each.text for each in never.candidates]
    assert [each.scores for each in free.candidates] == [each.scores for each in never.candidates]


def test_what_is_refused(engine):
    with pytest.raises(UserError, match=r"reads at ends of steps and of texts, and at no stop texts, got \('b',\)"):
        search(engine, BestOfN(), ("b",), verifier="trunk")
    for wrong in ("b", ("",), (3,)):
        with pytest.raises(UserError, match="stop_texts must be texts that are not empty"):
            SearchConfig(stop_texts=wrong)


def test_texts():
    assert before_stops("one two three", ("three", "two", "")) == "one "
    assert before_stops("one", ("two",)) == "one"
