"""Drawing tokens: temperature, top-k, top-p, min-p, with a counter-based generator."""

from ttc_kernels.sample.api import sample

__all__ = ["sample"]
