"""A search engine over the answers of a language model.

>>> from engine import BeamSearch, Engine
>>> engine = Engine.load("home")
>>> results = engine.search(["?5?2?=c;d3?"], BeamSearch(width=4), budget=16)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config import EngineConfig, SearchConfig
    from engine.engine import Engine
    from engine.errors import UserError
    from engine.handle import SearchHandle
    from engine.runtime import LLM, Branch, PoolTooSmall
    from engine.scheduler import ComputeOptimal
    from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions, SearchEvent
    from engine.types import Candidate, Problem, Sampling, SearchResult, SearchTree, Step

__all__ = [
    "DVTS",
    "LLM",
    "Adaptive",
    "BeamSearch",
    "BestOfN",
    "Branch",
    "Candidate",
    "ComputeOptimal",
    "Engine",
    "EngineConfig",
    "Lookahead",
    "Majority",
    "PoolTooSmall",
    "Problem",
    "Rebase",
    "Revisions",
    "Sampling",
    "SearchConfig",
    "SearchEvent",
    "SearchHandle",
    "SearchResult",
    "SearchTree",
    "Step",
    "UserError",
]

_HOMES = {
    "engine.config": ("EngineConfig", "SearchConfig"),
    "engine.engine": ("Engine",),
    "engine.errors": ("UserError",),
    "engine.handle": ("SearchHandle",),
    "engine.runtime": ("LLM", "Branch", "PoolTooSmall"),
    "engine.scheduler": ("ComputeOptimal",),
    "engine.search": (
        "DVTS",
        "Adaptive",
        "BeamSearch",
        "BestOfN",
        "Lookahead",
        "Majority",
        "Rebase",
        "Revisions",
        "SearchEvent",
    ),
    "engine.types": ("Candidate", "Problem", "Sampling", "SearchResult", "SearchTree", "Step"),
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for: torch takes seconds, and `ttc --help` needs none of it."""
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
