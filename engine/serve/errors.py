"""Errors in OpenAI's form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.counts import shown
from engine.errors import UserError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


@dataclass
class APIError(Exception):
    """An answer that is an error; `param` names the field of the request that is to blame."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, object]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(message: str, param: str | None = None, code: str | None = None) -> APIError:
    """For what a client can mend."""
    return APIError(400, message, param, code)


def busy(num_waiting: int, seconds: float) -> APIError:
    """For a queue that is full; `seconds` is about how long a place in it takes to come free."""
    headers = {"Retry-After": str(max(1, min(60, math.ceil(seconds))))}
    message = f"{num_waiting} requests wait already, at most {num_waiting} may: come back later"
    return APIError(429, message, code="queue_full", headers=headers)


def unavailable() -> APIError:
    """For a server that is being stopped."""
    return APIError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})


def as_api_error(error: BaseException) -> APIError:
    """What a client is told of an error: the sentence of a user's error, nothing of others."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, UserError):
        return refused(str(error))
    return APIError(500, "the server failed on this request", code="internal_error")


def of_validation(errors: Sequence[Mapping[str, object]]) -> APIError:
    """The first thing that is wrong with a body, as pydantic tells it."""
    first = errors[0]
    place = [part for part in first["loc"] if part != "body"]
    param = ".".join(map(str, place)) or None
    if first["type"] == "extra_forbidden":
        return refused(f"{param} is not supported, got {shown(first['input'])}", param, "unsupported_parameter")
    if first["type"] == "missing":
        return refused(f"{param or 'a body in JSON'} is missing", param, "missing_required_parameter")
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error":  # a sentence of ours
        return refused(f"{param}: {reason}" if param else reason, param)
    reason = reason.replace("Input should", "should", 1)
    return refused(f"{param or 'the body'}: {reason}, got {shown(first['input'])}", param)
