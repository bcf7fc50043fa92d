"""Searches over many machines: one engine per replica, and a driver that outlives them."""

from engine.distributed.ray_pool import Replicas
from engine.distributed.rollouts import label
from engine.distributed.search import Session, search

__all__ = ["Replicas", "Session", "label", "search"]
