"""Policies that others serve: OpenAI-compatible endpoints, which sample whole answers over HTTP."""

from engine.remote.model import RemoteModel
from engine.remote.policy import RemotePolicy

__all__ = ["RemoteModel", "RemotePolicy"]
