"""Copies of whole KV blocks, in all layers at once."""

from ttc_kernels.copy_blocks.api import copy_blocks

__all__ = ["copy_blocks"]
