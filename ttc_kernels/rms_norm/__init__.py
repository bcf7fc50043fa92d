"""RMSNorm, with the residual addition before it."""

from ttc_kernels.rms_norm.api import rms_norm

__all__ = ["rms_norm"]
