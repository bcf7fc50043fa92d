"""Our own server as the endpoint of another engine."""

import pytest

from engine.engine import Engine
from engine.search import BestOfN, Majority, Revisions
from engine.tasks import get_task, take_problems
from tests.serve.builders import assert_unused, serving

OPTIONS = {"max_tokens": 96, "seed": 1}


@pytest.fixture(scope="module")
def home():
    """An engine that is served, and the name of what is served."""
    engine = Engine.load("home")
    with serving(engine) as server:
        host, port = server.address
        yield engine, f"openai:http://{host}:{port}/v1#home"
    assert_unused(engine)


def test_home_solves_its_task_from_afar(home, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, name = home
    engine = Engine.load(name, prm="home", num_blocks=512)
    problems = take_problems(get_task("walks"), "test", 4)
    results = engine.search(problems, BestOfN(), 4, **OPTIONS)
    assert any(each.correct for each in results)
    ended = [each for result in results for each in result.candidates if each.finish == "eos"]
    assert len(ended) > 8
    assert all(len(each.scores) == len(each.text.splitlines()) for each in ended), "a step is a line, as it is here"
    for result in results:
        assert result.ledger.tokens["generated"] == sum(each.num_tokens for each in result.candidates)
        assert "tokens.generated" not in result.ledger.estimated
    again = engine.search(problems, BestOfN(), 4, **OPTIONS)
    assert [each.candidates for each in again] == [each.candidates for each in results]


def test_chats_and_revisions(home, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, name = home
    chat = Engine.load(name, prompt_style="chat")
    problem = "?3?5?=a"
    (result,) = chat.search([problem], Majority(), 2, **OPTIONS)
    assert len(result.candidates) == 2
    (result,) = chat.search([problem], Revisions(parallel=2, vote="majority"), 4, **OPTIONS)
    assert len(result.candidates) == 4


def test_a_served_search_is_a_policy_too(home, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, name = home
    (result,) = Engine.load(f"{name}@best-of-n-4").search(["?3?5?=a"], Majority(), 2, **OPTIONS)
    assert len(result.candidates) == 2
