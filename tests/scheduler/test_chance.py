"""From scores to chances, and from the chance at which a search stops to the score."""

import random

from engine.scheduler.chance import fit_chances, score_of, stopping_at
from engine.search import BeamSearch, Majority

from .builders import calibration, majority_curve


def drawn(num_answers: int, seed: int = 0) -> tuple[list[float], list[bool]]:
    """Answers of a verifier that boasts: one of score s is right with a chance of s squared."""
    rng = random.Random(seed)
    scores = [rng.random() for _ in range(num_answers)]
    return scores, [rng.random() < score**2 for score in scores]


def test_chances_are_those_that_were_measured():
    chances = fit_chances(*drawn(20_000))
    assert list(chances) == sorted(chances)
    assert [chance for _, chance in chances] == sorted({chance for _, chance in chances}), "they rise"
    for wanted in (0.25, 0.5, 0.8):
        assert abs(score_of(chances, wanted) - wanted**0.5) < 0.05


def test_nobody_is_sure_of_what_few_have_seen():
    assert max(chance for _, chance in fit_chances([0.9] * 5, [True] * 5)) == 6 / 7
    scores = [0.1] * 30 + [0.9] * 5
    assert len(fit_chances(scores, [False] * 30 + [True] * 5)) == 1, "five alone are no measurement"
    assert score_of(fit_chances(*drawn(50)), 0.99) is None
    assert fit_chances([], []) == ()


def test_scores_that_mislead_are_pooled():
    """The middle is right less often than what is below it."""
    scores = [0.1] * 40 + [0.5] * 40 + [0.9] * 40
    rights = [True] * 20 + [False] * 20 + [True] * 10 + [False] * 30 + [True] * 40
    assert fit_chances(scores, rights) == ((0.1, 31 / 82), (0.9, 41 / 42))


def test_a_strategy_stops_at_the_score_of_its_chance():
    chances = ((0.2, 0.1), (0.9, 0.6), (0.97, 0.95))
    assert stopping_at(BeamSearch(stop=0.95), chances) == BeamSearch(stop=0.97)
    assert stopping_at(BeamSearch(stop=0.3), chances) == BeamSearch(stop=0.9)
    assert stopping_at(BeamSearch(stop=0.99), chances) == BeamSearch(), "it is never that sure"
    assert 0 < stopping_at(BeamSearch(stop=0.05), ((0.0, 0.1), (0.9, 0.6))).stop < 1e-300, "any score is enough"
    assert stopping_at(BeamSearch(stop=0.95), ()) == BeamSearch(stop=0.95), "a score is taken for a chance"
    assert stopping_at(Majority(), chances) == Majority()
    assert calibration(majority_curve(0, {4: 40})).stopping(BeamSearch(stop=0.5)) == BeamSearch(stop=0.5)
