"""A search engine over the answers of a language model.

>>> from engine import BeamSearch, Engine
>>> engine = Engine.load("home")
>>> results = engine.search(["473;+38;*27"], BeamSearch(width=4), budget=16)
"""

from engine.engine import Engine
from engine.runtime import LLM, Branch, PoolTooSmall
from engine.search import DVTS, BeamSearch, BestOfN, Lookahead, Majority
from engine.types import Candidate, Problem, Sampling, SearchResult, SearchTree, Step

__all__ = [
    "DVTS",
    "LLM",
    "BeamSearch",
    "BestOfN",
    "Branch",
    "Candidate",
    "Engine",
    "Lookahead",
    "Majority",
    "PoolTooSmall",
    "Problem",
    "Sampling",
    "SearchResult",
    "SearchTree",
    "Step",
]
