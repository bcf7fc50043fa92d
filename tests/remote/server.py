"""A small OpenAI-compatible server in this process, over a tiny model, that can fail in all the usual ways."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from engine.runtime import LLM
from engine.types import Sampling

MODEL = "tiny"
CONTEXT = 1024

Answer = Callable[[dict], str]
Fault = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Serves /models, /completions and /chat/completions under /v1.

    The next request is given to the first of `faults`, where there is one that is not None. `answer` takes
    the place of the model.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.llm, self.lock = LLM.load(folder, num_blocks=256), threading.Lock()
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """As it was made, once no request of an earlier test is left."""
        while self.in_flight:
            time.sleep(0.001)
        self.key: str | None = None
        self.answer: Answer | None = None
        self.faults: deque[Fault | None] = deque()
        self.delay = 0.0  # seconds before each piece
        self.piece = 1  # characters, each of which is a token
        self.tells_usage = self.streams = True
        self.model_fields: dict = {}
        self.asked: list[tuple[str, dict]] = []
        self.billed: list[dict] = []
        self.num_hung_up = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def name(self) -> str:
        return f"openai:{self.url}#{MODEL}"

    def sample(self, body: dict) -> tuple[str, str]:
        """A text and why it ended."""
        if self.answer is not None:
            text = self.answer(body)
            return text[: body["max_tokens"]], "stop" if len(text) < body["max_tokens"] else "length"
        turns = [body["prompt"]] if "prompt" in body else [message["content"] for message in body["messages"]]
        with self.lock:
            branch = self.llm.open("\n".join(turns))
            options = {"sampling": Sampling(body["temperature"], top_p=body["top_p"]), "seed": body["seed"]}
            (found,) = self.llm.generate([branch], max_tokens=body["max_tokens"], **options)
            branch.close()
        return self.llm.decode(found.token_ids), "stop" if found.finish == "eos" else "length"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        fault = self.server.faults.popleft() if self.server.faults else None
        if fault is not None:
            fault(self)
        elif self._is_allowed():
            self.send_json(200, {"object": "list", "data": [{"id": MODEL, **self.server.model_fields}]})

    def do_POST(self) -> None:
        server = self.server
        content = self.rfile.read(int(self.headers["content-length"]))
        if not content:  # who asked has left
            self.close_connection = True
            return
        body = json.loads(content)
        with server.lock:
            server.asked.append((self.path.removeprefix("/v1"), body))
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            fault = server.faults.popleft() if server.faults else None
        try:
            if fault is not None:
                fault(self)
            elif self._is_allowed():
                self._answer(body)
        except OSError:
            server.num_hung_up += 1
            self.close_connection = True
        finally:
            with server.lock:
                server.in_flight -= 1

    def _is_allowed(self) -> bool:
        if self.server.key in (None, self.headers.get("authorization", "").removeprefix("Bearer ")):
            return True
        self.send_json(401, {"error": {"message": "no such key"}})
        return False

    def _answer(self, body: dict) -> None:
        if body["model"] != MODEL:
            return self.send_json(404, {"error": {"message": f"no model {body['model']}"}})
        asked = body.get("prompt") or "\n".join(each["content"] for each in body["messages"])
        if len(asked) + body["max_tokens"] > CONTEXT:
            return self.send_json(400, {"error": {"message": f"the context holds {CONTEXT} tokens"}})
        text, reason = self.server.sample(body)
        usage = {"prompt_tokens": len(asked), "completion_tokens": len(text) + (reason == "stop")}
        usage["prompt_tokens_details"] = {"cached_tokens": len(asked) - 1}
        self.server.billed.append(usage)
        size = self.server.piece
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        if not self.server.streams:
            said = {"message": {"content": text}} if "chat" in self.path else {"text": text}
            return self.send_json(200, {"choices": [{**said, "finish_reason": reason}], "usage": usage})
        self.begin_stream()
        for piece in pieces:
            time.sleep(self.server.delay)
            self.send_piece(piece)
        self.send_event({"choices": [{"delta": {}, "finish_reason": reason}]})
        if self.server.tells_usage:
            self.send_event({"choices": [], "usage": usage})
        self.send_chunk(b"data: [DONE]\n\n")
        self.send_chunk(b"")

    def send_json(self, status: int, answer: object, **headers: str) -> None:
        self.send_content(status, json.dumps(answer).encode(), "application/json", **headers)

    def send_content(self, status: int, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send_piece(self, piece: str) -> None:
        said = {"delta": {"content": piece}} if "chat" in self.path else {"text": piece}
        self.send_event({"choices": [{**said, "finish_reason": None}]})

    def send_event(self, event: dict) -> None:
        self.send_chunk(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())

    def send_chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()


def refuses(status: int, message: str = "not now", **headers: str) -> Fault:
    """Answers one request with an error; `retry_after="0"` has it tried again at once."""
    return lambda handler: handler.send_json(status, {"error": {"message": message}}, **headers)


def hangs_up(handler: _Handler) -> None:
    """Closes the connection in the midst of an answer."""
    handler.begin_stream()
    handler.send_piece("1")
    handler.send_piece("2")
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
