"""Aggregates the scores of an answer's steps to the one score by which it is ranked and votes.

Pure Python, because a search may not depend on tensors; `ttc_kernels.step_score` keeps the same
four numbers on the device, and a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.errors import UserError

AGG_STRATEGIES = ("last", "min", "prod", "mean")


def check_agg_strategy(agg_strategy: str) -> None:
    """Raises UserError for a name outside AGG_STRATEGIES."""
    if agg_strategy not in AGG_STRATEGIES:
        raise UserError(f"agg_strategy must be one of {', '.join(AGG_STRATEGIES)}, got {agg_strategy!r}")


def aggregate(scores: Sequence[float], agg_strategy: str) -> float:
    """The last, least, product or mean of step scores; 0.0 where nothing has been scored."""
    check_agg_strategy(agg_strategy)
    if not scores:
        return 0.0
    if agg_strategy == "last":
        return scores[-1]
    if agg_strategy == "min":
        return min(scores)
    if agg_strategy == "prod":
        return math.prod(scores)
    return math.fsum(scores) / len(scores)
