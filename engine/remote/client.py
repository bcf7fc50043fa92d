"""The HTTP of an endpoint: what it is asked, what it streams back, and what its refusals mean."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx

from engine.errors import ServiceError, UserError
from engine.remote.address import Address
from engine.remote.stream import Sampled

NUM_TRIES = 7  # of a request, about a minute in all
_FIRST_DELAY, _MOST_DELAY = 0.5, 30.0  # seconds before a request is tried again; each delay doubles the one before it
_CONNECT_SECONDS = 10.0
_BUSY = (408, 409, 425, 429)  # and all from 500 on
_OWN_FAULT = (400, 413, 422)  # of the one request: a prompt over the context, above all
_MAX_SHOWN = 300  # characters of what an endpoint says


class _Again(Exception):
    """A request is worth another try, after `delay` seconds where the endpoint has named them."""

    def __init__(self, why: UserError, delay: float | None = None):
        super().__init__(str(why))
        self.why, self.delay = why, delay


class Client:
    """Asks one endpoint, within one event loop. `max_in_flight` requests run at once, the others wait their turn."""

    def __init__(self, address: Address, max_in_flight: int, seconds: float):
        self.address, self.name = address, address.name
        self._places = asyncio.Semaphore(max_in_flight)
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError("the key in OPENAI_API_KEY holds characters that no key has")
        self._has_key = bool(key) or address.auth is not None
        self._http = httpx.AsyncClient(
            auth=address.auth,
            headers={"Authorization": f"Bearer {key}"} if key and address.auth is None else {},
            timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_in_flight),
        )

    async def models(self) -> list[dict]:
        """What the endpoint says of its models; nothing where it does not list them.

        Raises ServiceError where it does not answer, takes no key, or is no such endpoint.
        """
        try:
            response = await self._http.get(f"{self.address.url}/models")
        except httpx.RequestError as error:
            raise self._silent(error) from None
        if response.status_code in (401, 403):
            raise self._forbidden(response.status_code)
        if response.status_code != 200:
            return []
        found = self._object(response.content).get("data")
        return [each for each in found or () if isinstance(each, dict) and isinstance(each.get("id"), str)]

    async def close(self) -> None:
        await self._http.aclose()

    async def sample(self, path: str, body: dict, sampled: Sampled, stops_at_box: bool) -> None:
        """Has an answer sampled, and adds to `sampled` as it comes.

        Tries again where the endpoint is busy, fails or hangs up. Raises UserError for a request that it refuses, and
        ServiceError where no request would fare better.
        """
        async with self._places:
            delay = _FIRST_DELAY
            for number in range(1, NUM_TRIES + 1):
                try:
                    return await self._once(path, body, sampled, stops_at_box)
                except _Again as again:
                    if number == NUM_TRIES:
                        raise again.why from None
                    await asyncio.sleep(delay if again.delay is None else min(again.delay, _MOST_DELAY))
                sampled.restart()
                delay = min(2 * delay, _MOST_DELAY)

    async def _once(self, path: str, body: dict, sampled: Sampled, stops_at_box: bool) -> None:
        try:
            async with self._http.stream("POST", self.address.url + path, json=body) as response:
                if response.status_code != 200:
                    raise await self._refusal(response.status_code, response.headers, await response.aread())
                async for event in self._events(response):
                    if event.get("error"):
                        raise _Again(UserError(f"{self.name} broke an answer off: {_said(event)}"))
                    sampled.add(event, stops_at_box)
                    if sampled.finish == "boxed":  # leaving now closes the connection, and so ends the sampling
                        return
        except httpx.RequestError as error:
            raise _Again(self._silent(error)) from None
        if sampled.finish is None:
            raise _Again(UserError(f"{self.name} ends its answers in their midst"))

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict]:
        """The events of a stream; of an endpoint that does not stream, its one answer."""
        if "event-stream" not in response.headers.get("content-type", ""):
            yield self._object(await response.aread())
            return
        rest = b""
        async for chunk in response.aiter_bytes():
            *lines, rest = (rest + chunk).split(b"\n")  # not by httpx, which would also split at U+2028 within a text
            for line in lines:
                data = line.strip().removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    yield self._object(data)

    def _object(self, content: bytes) -> dict:
        with suppress(ValueError):
            if isinstance(found := json.loads(content), dict):
                return found
        raise ServiceError(
            f"{self.name} answers with what is no JSON object: {_cut(content.decode(errors='replace'))!r}"
        )

    # -- what refusals mean -------------------------------------------------------------------

    def _silent(self, error: httpx.RequestError) -> UserError:
        is_down = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol)
        said = f"{type(error).__name__}: {_cut(str(error))}".removesuffix(": ")
        if is_down:
            return ServiceError(f"{self.name} cannot be reached ({said})")
        return UserError(f"{self.name} has stopped answering ({said})")

    def _forbidden(self, status: int) -> ServiceError:
        what = "takes another key than that of OPENAI_API_KEY" if self._has_key else "wants a key: set OPENAI_API_KEY"
        return ServiceError(f"{self.name} {what} ({status})")

    async def _refusal(self, status: int, headers: httpx.Headers, content: bytes) -> Exception:
        said = _cut(content.decode(errors="replace"))
        with suppress(ServiceError):
            said = _said(self._object(content))
        if status in (401, 403):
            return self._forbidden(status)
        if status == 404:
            names = ", ".join(model["id"] for model in await self.models())
            return ServiceError(f"{self.name} is not found (404: {said})" + (f"; it serves {names}" if names else ""))
        refused = UserError(f"{self.name} refuses a request ({status}): {said}")
        if status in _OWN_FAULT:
            return refused
        if status in _BUSY or status >= 500:
            return _Again(refused, _seconds(headers.get("retry-after")))
        return ServiceError(str(refused))


def _said(answer: dict) -> str:
    """The message of an error, in any of the forms in use."""
    error = answer.get("error", answer)
    found = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return _cut(str(found or answer))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _seconds(retry_after: str | None) -> float | None:
    """The delay that an endpoint asks for; a date is left to our own delays."""
    with suppress(TypeError, ValueError):
        return max(0.0, float(retry_after))
    return None
