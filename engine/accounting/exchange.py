"""Exchanging pretraining for inference FLOPs: a larger model, or more search by a smaller one?

Snell et al. 2024, section 7: a model of N parameters costs 6·N FLOPs per token of pretraining and 2·N per token of
inference. One that is M times larger costs M times as much of both, so a small model with the same total may spend
M + 3·(D_pre / D_inf)·(M - 1) times its inference tokens. The revised paper (ICLR 2025) also counts the verifier,
which doubles the cost of an inference token to 4·N, so that 3 becomes 3/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import UserError

PRETRAIN_FLOPS = 6  # per parameter and token
INFERENCE_FLOPS = {"arxiv": 2, "iclr": 4}  # per parameter and token, by version of the paper

# R = D_inf / D_pre of the paper's comparisons, by its version.
PAPER_TOKEN_RATIOS = {"arxiv": (0.16, 0.79, 22.0), "iclr": (0.08, 0.40, 11.0)}


@dataclass(frozen=True)
class Exchange:
    """A small and a large model at equal total FLOPs. Raises UserError for sizes or counts out of range."""

    params_small: float
    params_large: float
    tokens_pretrain: float  # D_pre, the same for both
    tokens_inference: float  # D_inf: over the model's life, with one answer per question
    version: str = "arxiv"  # or "iclr", which counts the verifier

    def __post_init__(self) -> None:
        for name in ("params_small", "params_large", "tokens_pretrain", "tokens_inference"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"{name} must be above 0 and finite, got {value:g}")
        if self.params_large <= self.params_small:
            raise UserError(
                f"params_large must be above the params_small of {self.params_small:g}, got {self.params_large:g}"
            )
        if self.version not in INFERENCE_FLOPS:
            raise UserError(f"version must be one of {', '.join(INFERENCE_FLOPS)}, got {self.version!r}")

    @classmethod
    def from_ratios(cls, size_ratio: float, token_ratio: float, version: str = "arxiv") -> Exchange:
        """From M = large / small parameters and R = D_inf / D_pre alone. Raises UserError for R <= 0 or M <= 1."""
        if not 0 < token_ratio < math.inf:
            raise UserError(f"R, inference over pretraining tokens, must be above 0 and finite, got {token_ratio:g}")
        if not 1 < size_ratio < math.inf:
            raise UserError(f"M, large over small parameters, must be above 1 and finite, got {size_ratio:g}")
        return cls(1.0, size_ratio, 1.0, token_ratio, version)

    @property
    def size_ratio(self) -> float:
        """M, large over small parameters."""
        return self.params_large / self.params_small

    @property
    def token_ratio(self) -> float:
        """R = D_inf / D_pre, inference over pretraining tokens."""
        return self.tokens_inference / self.tokens_pretrain

    def pretrain_flops(self, params: float) -> float:
        return PRETRAIN_FLOPS * params * self.tokens_pretrain

    def inference_flops(self, params: float, multiple: float = 1.0) -> float:
        """FLOPs of `multiple` answers to every question."""
        return INFERENCE_FLOPS[self.version] * params * self.tokens_inference * multiple

    @property
    def multiple(self) -> float:
        """The factor on the small model's inference tokens that gives it the large model's total FLOPs."""
        ratio = PRETRAIN_FLOPS / INFERENCE_FLOPS[self.version]
        return self.size_ratio + ratio / self.token_ratio * (self.size_ratio - 1)

    @property
    def num_generations(self) -> int:
        """Answers per question that the small model may sample where the large one samples one: `multiple`, floored.

        The tolerance covers rounding, so that a multiple of 16 gives 16 answers.
        """
        return math.floor(self.multiple * (1 + 1e-12))
