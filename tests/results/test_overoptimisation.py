"""What the best-scored of N samples is worth: against a count of all subsets."""

from __future__ import annotations

import json
import random
from itertools import combinations

import pytest

from engine.reports.overoptimisation import notes, table_rows, verdict
from engine.results.overoptimisation import (
    SURE,
    Pool,
    Sample,
    overoptimisation,
    pool_sizes,
    pools_by_question,
    row_pool,
    searched_points,
    steps_of,
)
from engine.search.vote import vote
from engine.types import Candidate
from tests.reports.builders import make_pool


def sample(score: float, answer: str | None, *steps: str) -> Sample:
    return Sample(steps or ("a",), answer, score, answer == "1")


def drawn_pool(question: str, rng: random.Random, count: int) -> Pool:
    """Few scores, so that there are ties, and some samples without an answer."""
    samples = [
        sample(
            rng.choice((0.2, 0.5, 0.95)),
            rng.choice(("1", "2", "3", None)),
            *rng.choices(("a", "b", "c=c"), k=rng.randint(1, 3)),
        )
        for _ in range(count)
    ]
    return Pool(question, tuple(samples))


def counted(pool: Pool, size: int) -> dict[str, float]:
    """Means over all subsets."""
    sums = dict.fromkeys(("right", "sure_and_wrong", "idle", "too_short", "weighted", "majority"), 0.0)
    subsets = list(combinations(pool.samples, size))
    for subset in subsets:
        candidates = [Candidate("", each.answer, "eos", (), each.score, 0, ()) for each in subset]
        best = vote(candidates, "naive")[1]
        for rule in ("weighted", "majority"):
            sums[rule] += vote(candidates, rule)[0] == "1"
        if best is None:  # nobody may be chosen: the best-scored of them stands for it
            sums["idle"] += max(subset, key=lambda each: each.score).is_idle
            continue
        chosen = subset[best]
        sums["right"] += chosen.is_right
        sums["sure_and_wrong"] += not chosen.is_right and chosen.score > SURE
        sums["idle"] += chosen.is_idle
        sums["too_short"] += len(chosen.steps) < pool.fewest_steps
    return {name: value / len(subsets) for name, value in sums.items()}


def test_expectations_are_those_of_all_subsets():
    rng = random.Random(0)
    for trial in range(4):
        pool = drawn_pool("q", rng, 9)
        found = overoptimisation([pool])
        assert found["sizes"] == [1, 4, 9]
        for place, size in enumerate(found["sizes"]):
            expected = counted(pool, size)
            assert found["best-scored"][place]["accuracy"] == pytest.approx(expected["right"])
            for name in ("sure_and_wrong", "idle", "too_short"):
                assert found[name]["best_scored"][place] == pytest.approx(expected[name]), (trial, size, name)
            for name in ("weighted", "majority"):
                given = found["weighted vote" if name == "weighted" else name][place]["accuracy"]
                exact = size in (1, 9)
                assert given == pytest.approx(expected[name], abs=1e-9 if exact else 0.4), "sixteen subsets"
    assert overoptimisation([pool], seed=1)["best-scored"] == found["best-scored"]
    pools = [drawn_pool(str(number), rng, 8) for number in range(30)]
    means = [sum(counted(pool, 4)["weighted"] for pool in pools) / 30, overoptimisation(pools)["weighted vote"][1]]
    assert means[1]["accuracy"] == pytest.approx(means[0], abs=0.05)
    assert overoptimisation(pools, seed=1)["weighted vote"] != overoptimisation(pools)["weighted vote"]


def pools_of(right_score: float) -> list[Pool]:
    """Of 32 samples the best-scored is wrong, unless the right ones are scored higher."""
    some = [sample(right_score, "1"), *(sample(0.3, "2", "a", "b") for _ in range(30)), sample(0.99, "2", "a", "a")]
    return [Pool(str(number), tuple(some)) for number in range(20)]


def test_the_verdict():
    fooled, sound = overoptimisation(pools_of(0.9)), overoptimisation(pools_of(1.0))
    assert verdict(fooled).endswith("is over-optimised")
    assert "answer of 32 is right in 0.0 %, of 16 in" in verdict(fooled)
    assert verdict(sound).endswith("holds up")
    rows = dict(table_rows(fooled))
    assert rows["best-scored, wrong and sure"] == ["3.1 %", "12.5 %", "50.0 %", "100.0 %", "3.1 %"]
    assert rows["best-scored, an idle step"][-2:] == ["100.0 %", "3.1 %"]
    mixed = overoptimisation([*pools_of(0.9)[:2], *pools_of(1.0)[2:3]])
    assert verdict(mixed).endswith(("falls within its interval", "is over-optimised", "holds up"))
    json.dumps(fooled, allow_nan=False)


def test_pools_differ_in_size():
    small, large = Pool("a", (sample(1, "1"),)), Pool("b", tuple(sample(0.5, "2") for _ in range(5)))
    assert pool_sizes([small, large]) == [1, 4, 5]
    assert pool_sizes([]) == []
    found = overoptimisation([small, large, Pool("c", ())])
    assert [each["accuracy"] for each in found["best-scored"]] == [0.5, 0.5, 0.5]
    assert found["num_questions"] == 2
    assert pools_by_question([("a", sample(1, "1")), ("b", sample(1, "1")), ("a", sample(0, "2"))])[0].samples[1:] == (
        sample(0, "2"),
    )


def test_steps_that_say_nothing_new():
    assert steps_of(["1+1=2\n", "2=2\n", "\n"], "\n") == ("1+1=2", "2=2")
    for steps, is_idle in ((("a", "b"), False), (("a", "b", "a"), True), (("1+1=2", "2=2"), True), (("=",), True)):
        assert sample(0, "1", *steps).is_idle == is_idle
    assert Pool("", (sample(0, "1", "a", "b", "c"), sample(0, "1", "a", "b"), sample(0, "2"))).fewest_steps == 2
    assert Pool("", (sample(0, "2"),)).fewest_steps == 0


def test_searches_are_points():
    row = make_pool(["3", "7", "7"], [0.9, 0.6, 0.7], answer="7", pred="7", correct=True, strategy="beam")
    row["completions"] = ["a\nb\nc", "a\nb", "a\na"]
    pool = row_pool(row, "\n")
    assert [each.is_right for each in pool.samples] == [False, True, True]
    short = {**row, "budget": 8, "completions": ["a", "b", "c"]}
    found = searched_points([short, row], [pool], "\n")
    (three, eight) = found["beam"]
    assert (three["budget"], three["accuracy"], three["idle"], three["too_short"]) == (3, 1.0, 1.0, 0.0)
    assert (eight["budget"], eight["idle"], eight["too_short"]) == (8, 0.0, 1.0)
    lines = notes(overoptimisation([pool]) | {"searches": found})
    assert lines[2] == (
        "beam at 8: right in 100.0 %, of the chosen answers 0.0 % have an idle step and 100.0 % are too short"
    )
