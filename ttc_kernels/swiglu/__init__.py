"""The gated activation of Llama's feed-forward layer."""

from ttc_kernels.swiglu.api import swiglu

__all__ = ["swiglu"]
