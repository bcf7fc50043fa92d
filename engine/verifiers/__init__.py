"""What judges the steps of an answer, or whole answers."""

from engine.verifiers.aggregate import AGG_STRATEGIES, aggregate, check_agg_strategy
from engine.verifiers.callable import CallableVerifier
from engine.verifiers.oracle import OracleVerifier
from engine.verifiers.trunk import TrunkVerifier

__all__ = [
    "AGG_STRATEGIES",
    "CallableVerifier",
    "OracleVerifier",
    "TrunkVerifier",
    "aggregate",
    "check_agg_strategy",
]
