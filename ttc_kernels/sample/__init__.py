"""Drawing tokens: temperature, top-k, top-p, min-p, with a counter-based generator."""

from ttc_kernels.sample.api import sample
from ttc_kernels.sample.head import sample_head
from ttc_kernels.sample.reference import RowSampling

__all__ = ["RowSampling", "sample", "sample_head"]
