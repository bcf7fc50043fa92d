"""How a server is run: plain values, from which the command line's options are made."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from engine.counts import check_count, check_real
from engine.errors import UserError

MAX_CHOICES = 128  # what n may be, as at OpenAI


@dataclass(frozen=True)
class ServeConfig:
    """Where a server listens, and what it lets one request ask for."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in: name an --api-key then."""

    port: int = 8000
    """0 takes a free one, which is printed."""

    _: KW_ONLY

    api_key: str | None = None
    """Asked of every route but /health; better in the variable TTC_API_KEY, which others cannot list."""

    served_name: str | None = None
    """What requests call the model; by default the policy's name."""

    calibration: str = "home"
    """File of `ttc calibrate`, for compute-optimal."""

    max_request_tokens: int = 1 << 20
    """Tokens that a request may sample: its answers times max_tokens."""

    max_body_bytes: int = 1 << 20
    """Of a request."""

    max_queue: int = 1024
    """Requests that wait for a place in the batch; one more is told to come back later (429)."""

    drain_seconds: float = 30.0
    """How long requests may still run after SIGTERM."""

    keep_alive_seconds: float = 5.0
    """Silence after which a stream that has nothing to say sends a comment."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        check_count("port", self.port, 0, 65535)
        for name in ("max_request_tokens", "max_body_bytes", "max_queue"):
            check_count(name, getattr(self, name))
        for name, least in (("drain_seconds", 0.0), ("keep_alive_seconds", 0.01)):
            if not check_real(name, getattr(self, name)) >= least:
                raise UserError(f"{name} must be at least {least:g}, got {getattr(self, name)}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise UserError("api_key must be ASCII text that is not blank")
