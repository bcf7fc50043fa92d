"""A matrix product with what comes before and after it in a layer: RMSNorm, SwiGLU, the sum with the residual."""

from ttc_kernels.fused_linear.api import fused_linear
from ttc_kernels.fused_linear.tiles import Scratch, tiles_of

__all__ = ["Scratch", "fused_linear", "tiles_of"]
