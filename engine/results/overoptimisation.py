"""How far a verifier can be trusted with more samples: what the best-scored of N answers is worth, by N.

A search looks for the answer that its verifier likes best, so the verifier's errors are found along with its right
judgements. Where the best-scored answer of 256 is right less often than that of 16, it is over-optimised.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.results.pools import is_right
from engine.results.rows import Row
from engine.results.statistics import bootstrap_interval, mean_interval
from engine.search.vote import vote
from engine.types import Candidate

SURE = 0.9  # a wrong answer with a higher score is one that the verifier is sure of
_NUM_SUBSETS = 16  # of a pool, for votes
_VOTES = {"weighted vote": "weighted", "majority": "majority"}


@dataclass(frozen=True)
class Sample:
    """A sampled answer and its score."""

    steps: tuple[str, ...]
    answer: str | None  # None cannot be chosen
    score: float
    is_right: bool

    @property
    def is_idle(self) -> bool:
        """Whether a step says nothing new: one that was there before, or an equation of a thing with itself."""
        sides = (step.partition("=") for step in self.steps)
        return len(set(self.steps)) < len(self.steps) or any(left == right for left, middle, right in sides if middle)


@dataclass(frozen=True)
class Pool:
    """Independent samples of answers to one question, and how many steps a right one has at least."""

    question: str
    samples: tuple[Sample, ...]

    @property
    def fewest_steps(self) -> int:
        """0 where no sample is right: then none is known to be too short."""
        return min((len(each.steps) for each in self.samples if each.is_right), default=0)


def steps_of(texts: Iterable[str], delimiter: str) -> tuple[str, ...]:
    """The steps of an answer without their delimiters, blank ones left out."""
    return tuple(step.strip() for text in texts for step in text.split(delimiter) if step.strip())


def row_pool(row: Row, delimiter: str) -> Pool:
    """The candidates of a result row."""
    found = zip(row["completions"], row["answers"], row["agg_scores"], strict=True)
    samples = (
        Sample(steps_of([text], delimiter), answer, score or 0.0, is_right(row, answer))
        for text, answer, score in found
    )
    return Pool(row["problem"], tuple(samples))


def searched_points(rows: Iterable[Row], pools: Sequence[Pool], delimiter: str) -> dict[str, list[dict]]:
    """Figures of graded result rows by strategy, a point per budget: accuracy with its interval, and exploits.

    `idle` and `too_short` are shares of the answers that the searches chose, by their best candidates; what is too
    short is known for the questions of the pools.
    """
    fewest = {pool.question: pool.fewest_steps for pool in pools}
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["strategy"], row["budget"]].append(row)
    found: dict[str, list[dict]] = defaultdict(list)
    for (strategy, budget), group in sorted(groups.items()):
        point = _interval([bool(row["correct"]) for row in group], [row["id"] for row in group])
        chosen = [(row["problem"], _chosen(row, delimiter)) for row in group]
        idle = [each is not None and each.is_idle for _, each in chosen]
        short = [each is not None and len(each.steps) < fewest.get(problem, 0) for problem, each in chosen]
        exploits = {"idle": float(np.mean(idle)), "too_short": float(np.mean(short))}
        found[strategy].append({"budget": budget, **point, **exploits})
    return dict(found)


def _chosen(row: Row, delimiter: str) -> Sample | None:
    """The best-scored candidate of the answer that a search chose."""
    samples = [each for each in row_pool(row, delimiter).samples if each.answer is not None]
    return max((each for each in samples if each.answer == row["pred"]), key=lambda each: each.score, default=None)


def pool_sizes(pools: Sequence[Pool]) -> list[int]:
    """1, 4, 16 ... and the size of the largest pool."""
    most = max((len(pool.samples) for pool in pools), default=0)
    return sorted({4**power for power in range(most.bit_length()) if 4**power <= most} | {most} - {0})


def best_weights(num_samples: int, size: int) -> np.ndarray:
    """(num_samples,): the chance of each rank, the best first, to be the best of a random subset."""
    ranks = np.arange(num_samples - 1)
    ratios = np.maximum(num_samples - size - ranks, 0) / (num_samples - 1 - ranks)
    return size / num_samples * np.cumprod(np.concatenate([[1.0], ratios]))


def overoptimisation(pools: Sequence[Pool], seed: int = 0) -> dict:
    """Figures by number of samples, as JSON values; a pool with fewer samples counts with all of them.

    * `best-scored`, `weighted vote`, `majority`: accuracies with 95 % intervals. The first is the exact expectation
      over subsets, votes are the mean over some that the seed draws.
    * `sure_and_wrong`, `idle`, `too_short`: the share of the best-scored answers that are wrong with a score over
      `SURE`, have an idle step, or have fewer steps than any right sample of the question; `all`: of all samples
    * `change`: the accuracy of the best-scored at the largest size less that at 16 (or the last size before)
    """
    pools, sizes = [pool for pool in pools if pool.samples], pool_sizes(pools)
    questions = [pool.question for pool in pools]
    ranked = [_ranked(pool) for pool in pools]
    traits = {name: np.stack([_expected(each[name], sizes) for each in ranked]) for name in ranked[0]}
    means = {name: np.mean([float(each[name].mean()) for each in ranked]) for name in ranked[0]}
    figures: dict = {"sizes": sizes, "num_pools": len(pools), "num_questions": len(set(questions))}
    figures["best-scored"] = [_interval(values, questions) for values in traits["right"].T]
    for name, rule in _VOTES.items():
        figures[name] = [_interval([_voted(pool, rule, size, seed) for pool in pools], questions) for size in sizes]
    for name in ("sure_and_wrong", "idle", "too_short"):
        figures[name] = {"best_scored": traits[name].mean(axis=0).tolist(), "all": float(means[name])}
    before = max((size for size in sizes[:-1] if size <= 16), default=sizes[-1])
    change = traits["right"][:, -1] - traits["right"][:, sizes.index(before)]
    figures["change"] = {"since": before, "value": float(change.mean())}
    figures["change"]["interval"] = list(bootstrap_interval(change.tolist(), questions))
    return figures


def _ranked(pool: Pool) -> dict[str, np.ndarray]:
    """What is asked of each sample, the best-scored first, as votes rank them; those without an answer last."""
    order = sorted(pool.samples, key=lambda each: (each.answer is None, -each.score))
    fewest = pool.fewest_steps
    traits = {
        "right": [each.is_right for each in order],
        "sure_and_wrong": [each.answer is not None and not each.is_right and each.score > SURE for each in order],
        "idle": [each.is_idle for each in order],
        "too_short": [each.answer is not None and len(each.steps) < fewest for each in order],
    }
    return {name: np.array(values, dtype=float) for name, values in traits.items()}


def _expected(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    return np.array([best_weights(len(values), min(size, len(values))) @ values for size in sizes])


def _voted(pool: Pool, rule: str, size: int, seed: int) -> float:
    """The accuracy of a vote over random subsets."""
    rights = {each.answer for each in pool.samples if each.is_right}
    candidates = [Candidate("", each.answer, "eos", (), each.score, 0, ()) for each in pool.samples]
    if size >= len(candidates):
        return float(vote(candidates, rule)[0] in rights)
    if size == 1:
        return sum(each.is_right for each in pool.samples) / len(candidates)
    rng = random.Random(f"{seed}/{pool.question}/{size}")
    picks = (sorted(rng.sample(range(len(candidates)), size)) for _ in range(_NUM_SUBSETS))
    return sum(vote([candidates[at] for at in pick], rule)[0] in rights for pick in picks) / _NUM_SUBSETS


def _interval(values: Sequence[float], questions: Sequence[str]) -> dict[str, float]:
    low, high = mean_interval(list(map(float, values)), questions)
    return {"accuracy": float(np.mean(values)), "low": low, "high": high}


def pools_by_question(samples: Iterable[tuple[str, Sample]]) -> list[Pool]:
    """Pools of (question, sample) pairs."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for question, sample in samples:
        found[question].append(sample)
    return [Pool(question, tuple(each)) for question, each in found.items()]
