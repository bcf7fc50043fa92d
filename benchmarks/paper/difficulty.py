"""Difficulty of every problem: from its pool for the bins, and from a pilot of a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.paper.pools import Pool
from benchmarks.paper.settings import PILOT
from engine.accounting import Ledger
from engine.scheduler import ABSOLUTE_EDGES, Bins, Predictor
from engine.types import Candidate, Problem, SearchResult, SearchTree

NUM_BINS = 5
LEAST = 2  # problems of a bin: one for each fold


@dataclass(frozen=True)
class Binning:
    """A way to sort problems by difficulty; bin 0 is the easiest."""

    eases: np.ndarray  # (num_problems,)
    bins: Bins

    @property
    def members(self) -> list[np.ndarray]:
        """Positions of the problems of every bin."""
        index = np.array([self.bins.index(ease) for ease in self.eases])
        return [np.flatnonzero(index == each) for each in range(self.bins.count)]


def binnings(pools: Sequence[Pool]) -> dict[str, Binning]:
    """Three ways to sort problems by the pools of the bins: quintiles of pass@1 or of the PRM's score, absolute bins.

    Equal values share a bin, so that a small study may have fewer than five.
    """
    oracle = np.array([pool.pass_rate for pool in pools])
    predicted = np.array([ease(Predictor("score", pool.size, is_reused=False), pool.candidates()) for pool in pools])
    return {
        "oracle": Binning(oracle, Bins.quantiles(oracle.tolist(), NUM_BINS, LEAST)),
        "predicted": Binning(predicted, Bins.quantiles(predicted.tolist(), NUM_BINS, LEAST)),
        "absolute": Binning(oracle, Bins(ABSOLUTE_EDGES)),
    }


def pilot_binning(pools: Sequence[Pool], name: str, num_samples: int = PILOT) -> Binning:
    """Quintiles by the first few samples of the pools of answers, as a scheduler predicts: "agreement" or "score"."""
    predictor = Predictor(name, num_samples)
    eases = [ease(predictor, pool.candidates()[:num_samples]) for pool in pools]
    return Binning(np.array(eases), Bins.quantiles(eases, NUM_BINS, LEAST))


def ease(predictor: Predictor, candidates: Sequence[Candidate]) -> float:
    """What the engine's predictor says of these samples."""
    tree = SearchTree([])
    problem, seed = Problem("", ""), 0
    return predictor.value(
        SearchResult(problem, None, tuple(candidates), tree, Ledger(), "best-of-n", len(candidates), seed)
    )
