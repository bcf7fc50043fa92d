"""What stands before every route: the key, the size of a body, and the end of work whose client has left.

Plain ASGI: middleware of Starlette's base class hides that a client has left.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.errors import APIError

_OPEN_PATHS = ("/health",)


class Guard:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body_bytes: int):
        self.app, self.max_body_bytes = app, max_body_bytes
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_key(scope["path"], headers)
            body = await self._body(headers, receive)
        except APIError as error:
            await JSONResponse(error.body, error.status, headers=dict(error.headers))(scope, receive, send)
            return
        if body is not None:
            await _while_wanted(self.app, scope, body, receive, send)

    def _check_key(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises APIError without the key. A browser sends it as the password of any user."""
        if self._key is None or path in _OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with suppress(binascii.Error, ValueError):
                given = base64.b64decode(given, validate=True).decode("latin-1").partition(":")[2]
        if not hmac.compare_digest(given.strip().encode(), self._key):
            asks = {"WWW-Authenticate": 'Basic realm="ttc", charset="UTF-8"'} if path == "/" else {}
            raise APIError(401, "the API key is missing or wrong", code="invalid_api_key", headers=asks)

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes | None:
        """None where the client has left. Raises APIError for one that is too large."""
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > self.max_body_bytes:
            raise self._too_large(length)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body_bytes:
                raise self._too_large(f"more than {self.max_body_bytes}")
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self, size: str) -> APIError:
        return APIError(413, f"a body has at most {self.max_body_bytes} bytes, got {size}", code="body_too_large")


async def _while_wanted(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Runs an application on a body that has been read, and cancels it as soon as its client has left."""
    left, is_answered = asyncio.Event(), False
    parts = [body]

    async def replay() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def sending(message: Message) -> None:
        nonlocal is_answered
        is_answered |= message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    async def leaving() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    answering, gone = asyncio.ensure_future(app(scope, replay, sending)), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and not is_answered:
            answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
    finally:
        gone.cancel()
        answering.cancel()
