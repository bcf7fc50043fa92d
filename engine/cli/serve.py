"""`ttc serve`: an OpenAI-compatible server."""

from __future__ import annotations

import os
from dataclasses import replace

import typer

from engine.cli.inputs import MODELS, PROMPTS, unescaped
from engine.cli.options import command
from engine.config import EngineConfig, is_endpoint, without_password
from engine.errors import UserError
from engine.serve.config import ServeConfig


@command(
    {
        "Server": "host port api_key served_name drain_seconds keep_alive_seconds",
        "Limits": "max_request_tokens max_body_bytes max_queue",
        "Search": "calibration",
        "Prompts": f"task {PROMPTS}",
        "Models": f"{MODELS} verifier_device",
    }
)
def serve(server: ServeConfig, models: EngineConfig) -> None:
    """Serves a policy, and searches over its answers, to clients of OpenAI's API."""
    try:
        from engine.serve.server import Server
    except ImportError as error:
        missing = f"`ttc serve` needs {error.name}, which is missing"
        raise UserError(f"{missing}: pip install 'ttc-engine[serve]'") from None
    from engine.engine import Engine

    if is_endpoint(models.policy):
        name = without_password(models.policy)
        raise UserError(f"a server samples with a policy that it has loaded, and no endpoint, got --policy {name}")
    server = replace(server, api_key=server.api_key or os.environ.get("TTC_API_KEY") or None)
    name = server.served_name or str(models.policy).rstrip("/").rpartition("/")[2]
    if "@" in name:
        raise UserError(f"served_name may not have an @, which stands before a search, got {name!r}")
    engine = Engine.from_config(replace(models, step_delimiter=unescaped(models.step_delimiter)))
    typer.echo(f"loaded {models.policy}", err=True)
    Server(engine, server, name).run()
