"""Running models: live branches, batches over all problems, suspension when KV runs out."""

from engine.runtime.batcher import Batcher
from engine.runtime.llm import LLM, Branch
from engine.runtime.memory import PoolTooSmall
from engine.runtime.policy import ModelPolicy
from engine.runtime.requests import Sampled

__all__ = ["LLM", "Batcher", "Branch", "ModelPolicy", "PoolTooSmall", "Sampled"]
