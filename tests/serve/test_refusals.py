"""What is asked is honoured or refused, in OpenAI's form; what is no request costs nothing."""

import json

import openai
import pytest

from .builders import PROBLEM, call, chat_body

SEARCH = "home@beam-4"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def refusal(server, body, path=CHAT) -> dict:
    status, answer, _ = call(server, "POST", path, body)
    assert status == 400, answer
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    return answer["error"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported, got [{'type': 'function'}]"),
        ({"tool_choice": "auto"}, "tool_choice", "not supported, got 'auto'"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"logit_bias": {"1": 2}}, "logit_bias", "not supported, got {'1': 2}"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported, got 0.5"),
        ({"frequency_penalty": -1}, "frequency_penalty", "not supported, got -1"),
        ({"modalities": ["audio"]}, "modalities", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported, got 'high'"),
        ({"service_tier": "auto"}, "service_tier", "not supported"),
        ({"tempreature": 1}, "tempreature", "tempreature is not supported, got 1"),
        ({"top_logprobs": 2, "logprobs": True}, "top_logprobs", "got 2 alternatives"),
        ({"model": "gpt-4"}, "model", "model must be home or home@STRATEGY-BUDGET, got 'gpt-4'"),
        ({"model": "home@tree-4"}, None, "strategy must be one of majority, best-of-n"),
        ({"model": "home@beam"}, "model", "NAME@STRATEGY-BUDGET, got 'home@beam'"),
        ({"model": "home@beam-0"}, None, "budget must be at least 1, got 0"),
        ({"model": "home@beam-70000"}, None, "budget must be at most 65536, got 70000"),
        ({"n": 0}, "n", "greater than or equal to 1, got 0"),
        ({"n": 129}, "n", "less than or equal to 128, got 129"),
        ({"n": "2"}, "n", "valid integer, got '2'"),
        ({"n": 5, "model": SEARCH}, "n", "n must be at most the budget of 4 answers, got 5"),
        ({"seed": 1 << 63}, None, "seed must be at most"),
        ({"temperature": -1}, None, "temperature must be >= 0, got -1.0"),
        ({"top_p": 0}, None, "top_p must be within (0, 1], got 0.0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got 0"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "name one of them"),
        ({"max_tokens": 1 << 20, "n": 2}, None, "2 answers of 1048576 tokens are more than 1048576"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4 items"),
        ({"stop": ""}, "stop.0", "at least 1 character"),
        ({"stop": "a", "model": SEARCH}, "stop", "stop has no effect on a search"),
        ({"logprobs": True, "model": SEARCH}, "logprobs", "plain samples"),
        ({"stream_options": {"include_usage": True}}, None, "stream_options has no effect without stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not supported, got 1"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'user' or 'assistant', got 'tool'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "must be a text of the user's"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "must be a text of the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": [{"role": "user", "content": "1" * 30000}]}, None, "more than the 1024 tokens"),
        ({"messages": [{"role": "user", "content": "1" * 1023}]}, None, "the prompt has 1024 tokens"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "not valid Unicode"),
        ({"ttc": {"width": 4}}, "ttc.width", "ttc has no option 'width' with beam; it has strategy, budget"),
        ({"ttc": {"strategy": "tree"}}, "ttc.strategy", "ttc.strategy must be one of majority"),
        ({"ttc": {"strategy": ["beam"]}}, "ttc.strategy", "got ['beam']"),
        ({"ttc": {"beam_width": -1}}, None, "beam width must be at least 0, got -1"),
        ({"ttc": {"budget": 4.5}}, None, "budget must be a whole number, got 4.5"),
        ({"ttc": {"budget": 8}, "model": SEARCH}, "ttc.budget", "named by the model 'home@beam-4' already"),
        ({"ttc": {"verifier": "oracle"}}, "ttc.verifier", "must be one of prm, trunk, orm, got 'oracle'"),
        ({"ttc": {"verifier": "orm"}}, None, "judges whole answers"),
        ({"ttc": {"strategy": "majority", "verifier": "prm"}}, "ttc.verifier", "which scores nothing"),
        ({"ttc": {"agg_strategy": "max"}}, None, "agg_strategy must be one of last, min, prod, mean, got 'max'"),
        ({"ttc": {"return": ["all"]}}, "ttc.return", "some of candidates, scores, votes, ledger, tree, got ['all']"),
        ({"ttc": {"return": [1]}}, "ttc.return", "got [1]"),
        ({"ttc": {"progress": 1}}, "ttc.progress", "true or false, got 1"),
        ({"ttc": {"deadline_s": -1}}, "ttc.deadline_s", "got -1"),
        ({"ttc": {"deadline_s": "1"}}, None, "ttc.deadline_s must be a number, got '1'"),
        ({"ttc": {"strategy": "compute-optimal", "agg_strategy": "min"}}, "ttc.strategy", "agg_strategy was"),
        ({"ttc": []}, "ttc", "valid dictionary, got []"),
    ],
)
def test_a_chat_field_is_refused(server, fields, param, message):
    error = refusal(server, chat_body(**fields))
    assert message in error["message"]
    assert error["param"] == param
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ["a", "b"]}, "prompt", "at most 1 item"),
        ({"prompt": [1, 2]}, "prompt", "at most 1 item"),
        ({"prompt": ""}, "prompt", "not blank"),
        ({"logprobs": 1}, "logprobs", "got 1 alternatives"),
        ({"echo": True}, "echo", "echo is not supported, got True"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"suffix": "b"}, "suffix", "not supported"),
        ({"max_completion_tokens": 4}, "max_completion_tokens", "not supported"),
    ],
)
def test_a_text_field_is_refused(server, fields, param, message):
    error = refusal(server, {"model": "home", "prompt": PROBLEM, **fields}, TEXT)
    assert message in error["message"]
    assert error["param"] == param


def test_what_asks_for_nothing_is_accepted(server):
    nothing = {"tools": None, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "ann"}
    assert call(server, "POST", CHAT, chat_body(**nothing, seed=None, ttc=None))[0] == 200
    assert call(server, "POST", TEXT, {"model": "home", "prompt": PROBLEM, "echo": False, "suffix": None})[0] == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "home"}', b"[" * 100_000])
def test_a_body_that_is_no_request(server, content):
    refusal(server, content)


def test_routes_that_are_not_there(server):
    status, answer, _ = call(server, "GET", "/v1/embeddings")
    assert (status, answer["error"]["message"]) == (404, "GET /v1/embeddings: Not Found")
    assert call(server, "GET", CHAT)[0] == 405


def test_the_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError, match="n: should be") as caught:
        client.chat.completions.create(**chat_body(n=0))
    assert caught.value.param == "n"


def test_errors_of_a_stream_come_before_it(server):
    assert refusal(server, chat_body(stream=True, model="home@beam-0"))["message"].startswith("budget")
    status, _, headers = call(server, "POST", CHAT, chat_body(stream=True))
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_the_documentation_of_the_api_is_json_alone(server):
    status, document, _ = call(server, "GET", "/openapi.json")
    assert status == 200
    assert CHAT in document["paths"]
    assert call(server, "GET", "/docs")[0] == 404, "it would load scripts from elsewhere"
    assert "ttc" in json.dumps(document["components"]["schemas"]["ChatBody"])
