"""How an endpoint is named: openai:http://host:port/v1#model."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from engine.config import ENDPOINT
from engine.errors import UserError

_FORM = "an endpoint is named as openai:http://host:port/v1#model"


@dataclass(frozen=True)
class Address:
    """Where an endpoint is, and which of its models is asked. What is secret is never shown."""

    url: str  # of the API, without user and password
    model: str | None  # None: the only one that it serves
    auth: tuple[str, str] | None = field(default=None, repr=False)  # user and password

    @classmethod
    def parse(cls, name: str) -> Address:
        """Raises UserError for what does not have the form."""
        try:
            parts = urlsplit(name.removeprefix(ENDPOINT))
            host, port = parts.hostname, parts.port
        except ValueError as error:  # a port that is no number
            raise UserError(f"{_FORM}: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise UserError(f"{_FORM}, got {name.rpartition('@')[2]!r}")
        if parts.query:
            raise UserError(f"{_FORM}, and a key comes from OPENAI_API_KEY, got a URL with a query")
        place = f"[{host}]" if ":" in host else host
        url = f"{parts.scheme}://{place}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"
        auth = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
        return cls(url, unquote(parts.fragment) or None, auth)

    @property
    def name(self) -> str:
        """As a user may type it again, without user and password."""
        return f"{ENDPOINT}{self.url}" + ("" if self.model is None else f"#{self.model}")
