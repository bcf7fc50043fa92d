"""Running models: live branches, batches over all problems, suspension when KV runs out."""

from engine.runtime.batcher import Batcher
from engine.runtime.branch import Branch
from engine.runtime.kv import shared_blocks
from engine.runtime.llm import LLM
from engine.runtime.policy import ModelPolicy
from engine.runtime.preemption import PoolTooSmall
from engine.runtime.requests import GeneratedTokens, StopCondition

__all__ = [
    "LLM",
    "Batcher",
    "Branch",
    "GeneratedTokens",
    "ModelPolicy",
    "PoolTooSmall",
    "StopCondition",
    "shared_blocks",
]
