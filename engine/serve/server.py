"""The process: uvicorn, which on SIGTERM lets running requests end before it stops."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
import time

import uvicorn

from engine.engine import Engine
from engine.errors import UserError
from engine.serve.app import make_app
from engine.serve.config import ServeConfig
from engine.serve.service import Service

_SWITCH_SECONDS = 0.0005  # the event loop is not to wait long for the engine's thread
_LAST_SECONDS = 5  # to send what has been cancelled its answer


class Server(uvicorn.Server):
    """Serves one engine. Raises UserError for a config that contradicts it."""

    def __init__(self, engine: Engine, config: ServeConfig, name: str):
        self.service = Service(engine, config, name)
        super().__init__(
            uvicorn.Config(
                make_app(self.service),
                host=config.host,
                port=config.port,
                log_level="warning",
                timeout_graceful_shutdown=_LAST_SECONDS,
                server_header=False,
            )
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on, once it has started."""
        bound: socket.socket = self.servers[0].sockets[0]
        return bound.getsockname()[:2]

    @property
    def url(self) -> str:
        """Where it is, once it has started."""
        host, port = self.address
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def start(self) -> str:
        """Serves in a thread of this process until `stop` is called; returns the URL."""
        self._thread = threading.Thread(target=self.run, name="ttc server", daemon=True)
        self._thread.start()
        while not self.started:
            if not self._thread.is_alive():
                raise UserError(f"the server could not start at {self.config.host}:{self.config.port}")
            time.sleep(0.01)
        return self.url

    def stop(self, seconds: float = 0.0) -> None:
        """Lets what runs go on for so long, and ends; after `start`."""
        self.service.desk.drain(seconds)
        self._thread.join()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to stop."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where it listens."""
        await super().startup(sockets)
        if self.started:
            print(f"{self.service.models.name} at {self.url}", flush=True)

    def handle_exit(self, sig: int, frame: object) -> None:
        """The first signal begins to drain, a second one stops."""
        desk = self.service.desk
        if desk.is_draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
        else:
            desk.drain(self.service.config.drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to stop."""
        return self.service.desk.is_drained or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cancels what still runs, and answers it."""
        self.service.desk.close()
        await asyncio.sleep(0)
        await super().shutdown(sockets)
