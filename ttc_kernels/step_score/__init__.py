"""Scores of steps from hidden states, and the running aggregates they fold into."""

from ttc_kernels.step_score.api import step_score
from ttc_kernels.step_score.reference import LabelHead, fold

__all__ = ["LabelHead", "fold", "step_score"]
