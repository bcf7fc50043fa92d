"""Keys, limits, clients that leave, and the end of a server."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest

from engine.cli import main
from engine.serve.config import ServeConfig

from .builders import (
    LONG,
    MAX_SECONDS,
    assert_unused,
    call,
    chat_body,
    client_of,
    connect,
    serving,
    wait_until,
)

CHAT = "/v1/chat/completions"


def in_thread(work) -> tuple[threading.Thread, list]:
    """Starts work, whose result or error is put into the list."""
    found = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def send_and_leave(server, body) -> socket.socket:
    """Asks, and returns the open connection; closing it is what a client does that leaves."""
    connection = connect(server)
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    return connection.sock


def test_models_and_health(server, client):
    names = [model.id for model in client.models.list()]
    assert names[0] == "home"
    assert {"home@beam-16", "home@best-of-n-64", "home@compute-optimal-16"} <= set(names)
    assert call(server, "GET", "/health")[:2] == (200, {"status": "ok"})
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", call(server, "GET", "/version")[1]["version"])


def test_a_key_is_asked_of_all_routes_but_health(home):
    with serving(home, api_key="secret") as server:
        for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("GET", "/metrics"), ("GET", "/"), ("GET", "/x")):
            for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Basic c2VjcmV0"}):
                status, answer, _ = call(server, method, path, {} if method == "POST" else None, **wrong)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert call(server, "GET", "/health")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            client_of(server, "wrong").models.list()
        assert client_of(server, "secret").chat.completions.create(**chat_body()).choices
        browser = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
        assert call(server, "GET", "/", **browser)[0] == 200
        assert call(server, "GET", "/")[2]["www-authenticate"].startswith("Basic")


def test_it_listens_on_this_machine_alone(server):
    assert ServeConfig().host == "127.0.0.1" == server.address[0]


def test_a_large_body_is_refused_before_it_is_read(home):
    with serving(home, max_body_bytes=500) as server:
        status, answer, _ = call(server, "POST", CHAT, chat_body(user="a" * 500))
        assert (status, answer["error"]["code"]) == (413, "body_too_large")
        connection = connect(server)
        parts = iter([b"a" * 400, b"b" * 400])
        connection.request("POST", CHAT, parts, {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
        assert call(server, "POST", CHAT, chat_body())[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["home@best-of-n-4096", "home@beam-4096", "home"])
def test_a_client_that_leaves_has_its_search_cancelled(home, server, model, stream):
    whole = {"model": model, "stream": stream, "seed": 1, **({"n": 128, "temperature": 4.0} if model == "home" else {})}
    desk = server.service.desk
    leaving = send_and_leave(server, chat_body(**whole))
    wait_until(lambda: desk.num_running)
    (handle,) = desk.handles
    wait_until(lambda: home.policy.runner.has_work)
    leaving.close()
    begun = time.process_time()
    wait_until(lambda: not desk.handles)
    assert handle.is_done
    assert handle.outcome is None
    assert_unused(home)
    assert time.process_time() - begun < 2.0, "the search would take many seconds"


def test_a_task_that_is_cancelled_changes_no_other(home, server, client):
    want = client.chat.completions.create(**chat_body(model="home@beam-16", seed=5)).choices[0].message.content
    leaving = [send_and_leave(server, chat_body(**LONG)) for _ in range(3)]
    wait_until(lambda: server.service.desk.num_running)
    thread, found = in_thread(lambda: client.chat.completions.create(**chat_body(model="home@beam-16", seed=5)))
    for connection in leaving:
        connection.close()
    thread.join(MAX_SECONDS)
    assert found[0].choices[0].message.content == want
    assert_unused(home)


def test_a_full_queue_says_when_to_come_back(home):
    with serving(home, max_queue=1) as server:
        desk = server.service.desk
        first = send_and_leave(server, chat_body(**LONG))
        wait_until(lambda: desk.num_running == 1)
        second = send_and_leave(server, chat_body(**LONG))
        wait_until(lambda: desk.num_waiting == 1)
        status, answer, headers = call(server, "POST", CHAT, chat_body())
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["retry-after"]) >= 1
        page = call(server, "GET", "/metrics")[1]
        assert "ttc:num_requests_waiting 1.0" in page
        assert "ttc:num_requests_running 1.0" in page
        for connection in (first, second):
            connection.close()
        wait_until(lambda: not desk.handles)
        assert call(server, "POST", CHAT, chat_body())[0] == 200
    assert_unused(home)


def test_a_drain_lets_running_requests_end_and_takes_no_more(home):
    with serving(home, drain_seconds=MAX_SECONDS) as server:
        desk = server.service.desk
        running, found = in_thread(lambda: call(server, "POST", CHAT, chat_body(model="home@best-of-n-512", seed=1)))
        wait_until(lambda: desk.num_running)
        server.handle_exit(signal.SIGTERM, None)
        assert call(server, "GET", "/health")[:2] == (503, {"status": "draining"})
        status, answer, headers = call(server, "POST", CHAT, chat_body())
        assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "shutting_down", "5")
        running.join(MAX_SECONDS)
        assert found[0][0] == 200
        wait_until(lambda: not server.started or server.should_exit or not server.servers[0].is_serving())


@pytest.mark.parametrize("stream", [False, True])
def test_a_drain_that_takes_too_long_ends_what_runs(home, stream):
    with serving(home, drain_seconds=0) as server:
        running, found = in_thread(lambda: call(server, "POST", CHAT, chat_body(**LONG, stream=stream)))
        wait_until(lambda: server.service.desk.num_running)
        server.handle_exit(signal.SIGTERM, None)
        running.join(MAX_SECONDS)
    status, answer, _ = found[0]
    if stream:
        assert status == 200
        assert json.loads(answer.split("data: ")[-2])["error"]["code"] == "shutting_down"
        assert answer.endswith("data: [DONE]\n\n")
    else:
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
    assert_unused(home)


def test_metrics_count_what_was_done(home):
    with serving(home) as server:
        client = client_of(server)
        answer = client.chat.completions.create(**chat_body(model="home@beam-4", seed=1))
        list(client.chat.completions.create(**chat_body(stream=True)))
        call(server, "POST", CHAT, chat_body(n=0))
        lines = dict(line.rsplit(" ", 1) for line in call(server, "GET", "/metrics")[1].splitlines() if line[0] != "#")
    assert float(lines['ttc:generations_total{strategy="beam"}']) == 4
    assert float(lines['ttc:generations_total{strategy="sample"}']) == 1
    assert float(lines["ttc:generation_tokens_total"]) > answer.usage.completion_tokens
    assert float(lines["ttc:prompt_tokens_total"]) == 2 * answer.usage.prompt_tokens
    assert float(lines["ttc:verifier_tokens_total"]) == answer.usage.ttc["tokens"]["verified"] > 0
    assert float(lines['ttc:flops_total{purpose="verified"}']) == answer.usage.ttc["flops"]["verified"]
    assert float(lines['ttc:request_success_total{finished_reason="stop"}']) == 2
    assert float(lines["ttc:e2e_request_latency_seconds_count"]) == 2
    assert float(lines["ttc:time_to_first_token_seconds_count"]) == 1
    assert float(lines["ttc:prefix_cache_queries_total"]) >= float(lines["ttc:prefix_cache_hits_total"]) > 0
    assert 0 <= float(lines["ttc:kv_cache_usage_perc"]) <= 1


def test_the_command_serves_until_it_is_told_to_stop():
    environment = {**os.environ, "TTC_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "engine.cli", "serve", "--port", "0", "--served-name", "mine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stdout.readline()
        host, port = re.fullmatch(r"mine at http://(.*):(\d+)/\n", line).groups()
        client = openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="secret")
        assert client.chat.completions.create(**chat_body(model="mine@beam-4")).choices[0].message.content
        process.send_signal(signal.SIGTERM)
        assert process.wait(MAX_SECONDS) == 0


def test_values_out_of_range_are_refused(capsys):
    for arguments, message in (
        (["--port", "70000"], "port must be at most 65535, got 70000"),
        (["--max-queue", "0"], "max_queue must be at least 1, got 0"),
        (["--drain-seconds", "-1"], "drain_seconds must be at least 0, got -1.0"),
        (["--served-name", "a@b"], "served_name may not have an @"),
        (["--api-key", " "], "api_key must be"),
    ):
        assert main(["serve", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_missing_extra_is_one_sentence():
    """In a process in which the extra's packages cannot be imported."""
    program = "import sys; sys.modules['uvicorn'] = None; from engine.cli import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: `ttc serve` needs uvicorn, which is missing: pip install 'ttc-engine[serve]'\n"
