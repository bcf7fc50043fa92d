"""Endpoints that are busy, break, hang up, refuse or are slow; searches that are cancelled or run out of time."""

import os
import threading
import time
from contextlib import closing

import pytest

from engine.engine import Engine
from engine.errors import ServiceError, UserError
from engine.remote.address import Address
from engine.remote.client import _Again, _seconds
from engine.search import BestOfN, Majority
from tests.remote.server import MODEL, hangs_up, refuses
from tests.remote.test_searches import OPTIONS, PROBLEMS
from tests.runtime.builders import assert_idle

LONG = "1" * 400  # of which a piece comes every few milliseconds
MAX_SECONDS = 60.0


def wait_until(is_so) -> None:
    end = time.monotonic() + MAX_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.002)


@pytest.mark.parametrize("fault", [refuses(429, retry_after="0"), refuses(503, retry_after="0"), hangs_up])
def test_what_fails_once_is_asked_again(engine, server, fault):
    want = engine.search(PROBLEMS, BestOfN(), 2, **OPTIONS)
    server.faults.append(fault)
    found = engine.search(PROBLEMS, BestOfN(), 2, **OPTIONS)
    assert [each.candidates for each in found] == [each.candidates for each in want]
    recomputed = sum(each.ledger.tokens["recomputed"] for each in found)
    assert recomputed == (2 if fault is hangs_up else 0), "what was sampled in vain is billed"
    assert any("tokens.recomputed" in each.ledger.estimated for each in found) == bool(recomputed)


def test_an_endpoint_that_fails_for_good_is_given_up(engine, server):
    server.faults.extend([refuses(500, "out of memory", retry_after="0")] * 7)
    with pytest.raises(UserError, match=rf"{MODEL} refuses a request \(500\): out of memory"):
        engine.search(PROBLEMS[:1], Majority(), 1, **OPTIONS)
    assert engine.search(PROBLEMS[:1], Majority(), 1, **OPTIONS)[0].candidates, "the engine can be used again"


def test_delays_are_those_that_the_server_names():
    assert [_seconds(each) for each in ("2", "0.5", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", None)] == [
        2,
        0.5,
        0,
        None,
        None,
    ]
    assert str(_Again(UserError("why"))) == "why"


def test_a_prompt_over_the_context_ends_its_problem_alone(engine, server):
    asked = [PROBLEMS[0], "1" * 1020, PROBLEMS[1]]
    found = dict(engine.search_iter(asked, Majority(), 2, on_error="yield", **OPTIONS))
    assert "refuses a request (400): the context holds 1024 tokens" in str(found[1])
    assert all(len(found[index].candidates) == 2 for index in (0, 2))
    with pytest.raises(UserError, match="the context holds 1024 tokens"):
        engine.search(asked, Majority(), 2, **OPTIONS)


def test_the_models_that_there_are_are_named(server):
    engine = Engine.load(f"openai:{server.url}#other")
    with pytest.raises(ServiceError, match=rf"#other is not found \(404: no model other\); it serves {MODEL}"):
        list(engine.search_iter(PROBLEMS, Majority(), 2, on_error="yield", **OPTIONS))
    assert Engine.load(f"openai:{server.url}").policy.name == server.name, "the only one needs no name"


def test_keys_come_from_the_environment_and_are_never_shown(server, monkeypatch):
    server.key = "sesame"
    with pytest.raises(ServiceError, match=r"wants a key: set OPENAI_API_KEY \(401\)"):
        Engine.load(server.name)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ServiceError, match="takes another key") as raised:
        Engine.load(server.name)
    assert "wrong" not in str(raised.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sés\name")
    with pytest.raises(UserError, match=r"characters that no key has$"):
        Engine.load(server.name)
    monkeypatch.setenv("OPENAI_API_KEY", "sesame\n")
    engine = Engine.load(server.name)
    assert engine.search(PROBLEMS, Majority(), 2, **OPTIONS)
    server.key = "another"
    with pytest.raises(ServiceError, match="takes another key"):
        list(engine.search_iter(PROBLEMS, Majority(), 2, on_error="yield", **OPTIONS))


def test_an_endpoint_that_is_none(server):
    with pytest.raises(ServiceError, match=r"openai:http://127\.0\.0\.1:9/v1#x cannot be reached \(ConnectError"):
        Engine.load("openai:http://127.0.0.1:9/v1#x")
    server.faults.append(lambda handler: handler.send_content(200, b"<html>Hello", "text/html"))
    with pytest.raises(ServiceError, match="no JSON object: '<html>Hello'"):
        Engine.load(server.name)
    engine = Engine.load(server.name)
    server.faults.append(lambda handler: handler.send_content(200, b"<html>Hello", "text/html"))
    with pytest.raises(ServiceError, match="no JSON object: '<html>Hello'"):
        engine.search(PROBLEMS[:1], Majority(), 1, **OPTIONS)


@pytest.mark.parametrize(
    "name", ["openai:", "openai:v1#x", "openai:ftp://a/v1#x", "openai:http://#x", "openai:http://a:b/"]
)
def test_names_of_endpoints_have_a_form(name):
    with pytest.raises(UserError, match="an endpoint is named as openai:http://host:port/v1#model"):
        Address.parse(name)


def test_what_is_secret_in_a_name_is_not_shown():
    address = Address.parse("openai:https://me:pass%40word@host:8000/v1/#org/model")
    assert (address.name, address.auth) == ("openai:https://host:8000/v1#org/model", ("me", "pass@word"))
    assert "pass" not in repr(address)
    with pytest.raises(UserError) as raised:
        Address.parse("openai:http://host/v1?key=hidden#m")
    assert "hidden" not in str(raised.value)
    with pytest.raises(UserError) as raised:
        Address.parse("openai:ftp://me:hidden@host/v1")
    assert "hidden" not in str(raised.value)


def test_a_request_that_is_silent_for_too_long_is_sent_anew(server):
    is_over = threading.Event()
    server.answer = lambda body: "1"
    engine = Engine.load(server.name, request_timeout=0.2)
    server.faults.append(lambda handler: is_over.wait(MAX_SECONDS))
    (result,) = engine.search(PROBLEMS[:1], Majority(), 1, **OPTIONS)
    is_over.set()
    assert (result.candidates[0].text, len(server.asked)) == ("1", 2)


def test_a_search_that_is_cancelled_closes_its_connections(engine, server):
    server.answer, server.delay = (lambda body: LONG), 0.005
    handle = engine.submit(PROBLEMS[0], BestOfN(), budget=4, max_tokens=500)
    wait_until(lambda: server.in_flight == 4)
    handle.cancel()
    wait_until(lambda: server.in_flight == 0)
    assert server.num_hung_up == 4
    wait_until(lambda: not engine.policy.runner.has_work)
    assert handle.ledger.tokens["generated"] >= 0
    assert_idle(engine.prm.runner)


def test_a_search_that_is_given_up_closes_its_connections(engine, server):
    server.answer = lambda body: LONG if body["prompt"] == PROBLEMS[1].prompt else "1"
    server.delay = 0.005
    with closing(engine.search_iter(PROBLEMS, Majority(), 2, max_tokens=500)) as results:
        assert next(results)[0] == 0
    wait_until(lambda: server.in_flight == 0)
    assert server.num_hung_up == 2
    assert not engine.policy.runner.has_work


def test_a_deadline_keeps_what_has_come(engine, server):
    server.answer, server.delay = (lambda body: LONG), 0.01
    result = engine.submit(PROBLEMS[0], Majority(), budget=2, max_tokens=500, deadline=0.4).result(MAX_SECONDS)
    assert result.stopped_by == "deadline"
    assert [each.finish for each in result.candidates] == ["length"] * 2
    texts = [each.text for each in result.candidates]
    assert all(1 <= len(text) < len(LONG) and LONG.startswith(text) for text in texts)
    assert abs(result.ledger.tokens["generated"] - sum(map(len, texts))) <= 2
    assert "tokens.generated" in result.ledger.estimated
    wait_until(lambda: server.in_flight == 0)


def test_waiting_costs_no_processor_time(engine, server):
    is_over = threading.Event()
    server.faults.append(lambda handler: is_over.wait(MAX_SECONDS))
    handle = engine.submit(PROBLEMS[0], Majority(), budget=1, **OPTIONS)
    wait_until(lambda: server.in_flight == 1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    handle.cancel()
    is_over.set()


def test_a_model_here_works_while_an_endpoint_is_slow(engine, server):
    """The PRM scores one problem's answers while another's are awaited."""
    is_over = threading.Event()

    def answer(body: dict) -> str:
        return "1" if body["prompt"] == PROBLEMS[0].prompt or is_over.wait(MAX_SECONDS) else ""

    server.answer = answer
    results = engine.search_iter(PROBLEMS, BestOfN(), 2, **OPTIONS)
    index, result = next(results)
    assert (index, [len(each.scores) for each in result.candidates]) == (0, [1, 1])
    is_over.set()
    assert [index for index, _ in results] == [1]


def test_a_forked_child_is_told_to_load_it_anew(engine):
    engine.search(PROBLEMS[:1], Majority(), 1, **OPTIONS)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            engine.search(PROBLEMS[:1], Majority(), 1, **OPTIONS)
        except UserError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"an endpoint is loaded in the process that asks it" in os.read(reader, 1000)
