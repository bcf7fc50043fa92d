"""Servers in threads of this process, and plain HTTP to them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import openai

from engine.engine import Engine
from engine.serve.config import ServeConfig
from engine.serve.server import Server

PROBLEM = "?5?2?=c;d3?1?4?;?0?3?1?=e;b2?4?5?0?"
MAX_SECONDS = 120.0
LONG = {"model": "home@best-of-n-4096", "seed": 1}  # more seconds than a test waits for


@contextmanager
def serving(engine: Engine, **config) -> Iterator[Server]:
    """A server on a free port, in a thread of its own."""
    server = Server(engine, ServeConfig(port=0, **config), "home")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + MAX_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.002)


def client_of(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}v1", api_key=key, max_retries=0, timeout=MAX_SECONDS)


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*server.address, timeout=MAX_SECONDS)


def call(server: Server, method: str, path: str, body: object = None, **headers: str) -> tuple[int, object, dict]:
    """Status, what the JSON or text of the answer is, and the headers."""
    connection = connect(server)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    is_json = answer.headers.get_content_type() == "application/json"
    return answer.status, json.loads(text) if is_json else text, dict(answer.headers)


def chat_body(**fields: object) -> dict[str, object]:
    return {"model": "home", "messages": [{"role": "user", "content": PROBLEM}], **fields}


def assert_unused(engine: Engine) -> None:
    """Once what was given up has been closed, nothing is open, queued or lost."""
    used = [llm.runner for llm in (engine.policy, engine.prm, engine.orm, engine.reviser) if llm is not None]
    wait_until(lambda: not engine._driver._live)
    for runner in used:
        tree = runner.tree
        tree.check_integrity()
        assert tree.num_open == 0
        assert tree.num_free_blocks + tree.num_cached_blocks == tree.num_blocks
        assert not runner.has_work
