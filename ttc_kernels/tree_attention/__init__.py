"""Attention of many branches over the tree of their common prefixes."""

from ttc_kernels.tree_attention.api import choose as implementation
from ttc_kernels.tree_attention.api import tree_attention

__all__ = ["implementation", "tree_attention"]
