"""Registers the provider `ttc` with Inspect, which finds this module by its entry point at each start.

So nothing of the engine is imported before a model of this provider is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inspect_ai.model import modelapi

if TYPE_CHECKING:
    from engine.plugins.inspect_model import SearchingModel


@modelapi("ttc")
def ttc() -> type[SearchingModel]:
    from engine.plugins.inspect_model import SearchingModel

    return SearchingModel
