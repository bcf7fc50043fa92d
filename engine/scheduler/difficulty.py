"""Predicts how hard a problem is for a policy from a few samples, and sorts problems into bins of like difficulty.

All measures rise with ease: a share of right answers, or an estimate of it (that of a probe may lie outside [0, 1]).
Bin 0 is the easiest.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise

from engine.accounting.ledger import Ledger
from engine.config import SearchConfig
from engine.counts import check_count, settle_count, shown
from engine.errors import UserError
from engine.search import MAX_BUDGET, UNWATCHED, Answers, BestOfN, Majority, Models, Watch, is_correct, run_search
from engine.search.answers import Grade
from engine.types import Problem, SearchResult, SearchTree, TreeNode

PREDICTORS = ("oracle", "score", "agreement", "probe", "probe+score")
ABSOLUTE_EDGES = (0.1, 0.5)  # hard below a tenth, easy from one half on: transfers better than quintiles


@dataclass(frozen=True)
class Predictor:
    """Predicts a problem's ease from samples, or from what the policy makes of the prompt.

    "oracle" is pass@1 against the gold answer, "score" the mean final verifier score (both as in
    Snell et al. 2024, there over 2048 samples), "agreement" the chance that two samples state the
    same answer, which needs no verifier. "probe" reads the policy's hidden state at the end of the prompt and draws
    no sample, "probe+score" also the score; `weights` are what `fit_probe` has found for them. Where samples are
    re-used they count in the budget and vote; else they are drawn apart, and only the bill shows them. Raises
    UserError for a bad value.
    """

    name: str = "agreement"
    num_samples: int = 4
    is_reused: bool = True
    weights: tuple[float, ...] = ()  # of a probe: a constant, one for each number of the state, that of the score

    def __post_init__(self) -> None:
        if self.name not in PREDICTORS:
            raise UserError(f"predictor must be one of {', '.join(PREDICTORS)}, got {self.name!r}")
        label = f"samples of predictor {self.name}"
        least = {"agreement": 2, "probe": 0}.get(self.name, 1)
        settle_count(self, "num_samples", least, 0 if self.name == "probe" else MAX_BUDGET, label=label)
        object.__setattr__(self, "weights", tuple(self.weights))
        if not all(map(math.isfinite, self.weights)):
            raise UserError(f"the weights of a probe must be finite, got {shown(self.weights)}")
        if self.is_reused and self.name == "oracle":
            raise UserError("the samples of the oracle predictor know the answer, so they must not be re-used to vote")

    @property
    def reads_scores(self) -> bool:
        """Whether its samples have to be scored."""
        return self.name in ("score", "probe+score")

    @property
    def is_probe(self) -> bool:
        return self.name in ("probe", "probe+score")

    @property
    def num_spent(self) -> int:
        """Generations of a problem's budget that the prediction takes."""
        return self.num_samples if self.is_reused else 0

    async def sample(
        self, problem: Problem, models: Models, config: SearchConfig, answers: Answers, watch: Watch = UNWATCHED
    ) -> SearchResult:
        """The samples, scored where there is a verifier and a search is to go on from them.

        All that they cost is `estimation` in the result's own ledger: a search that goes on from them includes it.
        Raises UserError for the oracle on a problem without an answer.
        """
        if self.name == "oracle" and problem.answer is None:
            raise UserError(f"the oracle predictor needs an answer, problem {problem.id!r} has none")
        ledger, state = Ledger(), ()
        if self.is_probe:
            with closing(await models.policy.open(problem.asked, ledger=ledger)) as branch:
                state = tuple(await models.policy.prompt_state(branch))
        is_scored = self.reads_scores or (self.is_reused and models.verifier is not None)
        drawn = problem if self.is_reused else replace(problem, id=f"{problem.id}/difficulty")  # another stream
        if self.num_samples:
            strategy, config = BestOfN() if is_scored else Majority(), replace(config, budget=self.num_samples)
            result = await run_search(drawn, strategy, models, config, answers, ledger=ledger, watch=watch)
        else:
            tree = SearchTree([TreeNode((), None, status="root")])
            result = SearchResult(problem, None, (), tree, ledger, "probe", 0, config.seed)
        bill = Ledger()
        bill.include(ledger, "estimation")
        return replace(result, problem=problem, ledger=bill, prompt_state=state)

    def features(self, samples: SearchResult) -> tuple[float, ...]:
        """What a probe predicts from."""
        return (*samples.prompt_state, *([self._score(samples)] if self.reads_scores else []))

    def value(self, samples: SearchResult, grade: Grade | None = None) -> float:
        """The predicted ease. A sample that a numeric failure (NaN) of a model spoiled counts as wrong."""
        candidates, num_samples = samples.candidates, len(samples.candidates)
        if self.name == "oracle":
            gold = samples.problem.answer
            return sum(is_correct(each.answer, gold, grade) is True for each in candidates) / num_samples
        if self.name == "score":
            return self._score(samples)
        if self.is_probe:
            features = self.features(samples)
            if len(self.weights) != len(features) + 1:
                raise UserError(
                    f"a probe of {len(features)} features has as many weights and a constant, got {len(self.weights)}"
                )
            constant, *slopes = self.weights
            return constant + math.fsum(slope * each for slope, each in zip(slopes, features, strict=True))
        counts = Counter(each.answer for each in candidates if each.answer is not None)
        return sum(count * (count - 1) for count in counts.values()) / (num_samples * (num_samples - 1))

    def _score(self, samples: SearchResult) -> float:
        """The mean final verifier score."""
        scores = [each.agg_score for each in samples.candidates if each.finish != "error"]
        return math.fsum(scores) / len(samples.candidates)


@dataclass(frozen=True)
class Bins:
    """Intervals of ease. Bin 0 holds all from the highest edge up, the last what is below the lowest."""

    edges: tuple[float, ...] = ()  # ascending

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.edges)) or list(self.edges) != sorted(set(self.edges)):
            raise UserError(f"the edges of difficulty bins must rise, got {list(self.edges)}")

    @property
    def count(self) -> int:
        return len(self.edges) + 1

    def index(self, value: float) -> int:
        return len(self.edges) - bisect_right(self.edges, value)

    def describe(self, index: int) -> str:
        """`bin 2 of 5 (0.25 to 0.50)`."""
        bounds = [-math.inf, *self.edges, math.inf]
        low, high = bounds[self.count - 1 - index], bounds[self.count - index]
        within = [f"from {low:.3g}" if low > -math.inf else "", f"below {high:.3g}" if high < math.inf else ""]
        where = ", ".join(filter(None, within))
        return f"bin {index + 1} of {self.count}" + (f" ({where})" if where else "")

    @classmethod
    def quantiles(cls, values: Sequence[float], num_bins: int = 5, least: int = 1) -> Bins:
        """`num_bins` bins of like size; equal values share a bin, and one under `least` joins its neighbour.

        So there may be fewer bins.
        """
        check_count("difficulty bins", num_bins)
        ranked = sorted(values)
        halves = [(low + high) / 2 for low, high in pairwise(ranked)]
        cuts = [cut for cut, half in enumerate(halves, start=1) if ranked[cut - 1] < half]  # not within rounding
        wanted = [number * len(ranked) / num_bins for number in range(1, num_bins)]
        chosen = [0]
        for cut in sorted({min(cuts, key=lambda cut: abs(cut - want)) for want in wanted} if cuts else ()):
            if cut - chosen[-1] >= least and len(ranked) - cut >= least:
                chosen.append(cut)
        return cls(tuple(halves[cut - 1] for cut in chosen[1:]))
