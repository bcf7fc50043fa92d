"""Bias and rotary position embedding of the fused QKV rows, and the store of their keys and values."""

from ttc_kernels.rope_store_kv.api import rope_store_kv

__all__ = ["rope_store_kv"]
