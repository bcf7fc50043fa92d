"""Verifiers: they score the steps of an answer, or whole answers."""

from engine.verifiers.adapter import as_verifier
from engine.verifiers.base import Verifier
from engine.verifiers.callable import CallableVerifier
from engine.verifiers.oracle import OracleVerifier
from engine.verifiers.trunk import TrunkVerifier

__all__ = [
    "CallableVerifier",
    "OracleVerifier",
    "TrunkVerifier",
    "Verifier",
    "as_verifier",
]
