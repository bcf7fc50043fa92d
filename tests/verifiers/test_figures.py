"""The area over first wrong steps: of pairs to the same question at the same place, and pooled."""

from __future__ import annotations

import math

import pytest

from engine.training.verifier import JudgedRow, held_out_figures
from engine.verifiers.figures import FirstWrongArea, first_wrong_area, first_zero


def test_pairs_of_a_question_and_a_place_by_hand():
    scores = [[0.9, 0.8, 0.1], [0.7, 0.6, 0.9], [0.8, 0.8], [0.1, 0.95]]
    places = [2, 1, -1, 0]
    # At 0: 0.9, 0.7 and 0.8 against 0.1. At 1: 0.8 and 0.8 against 0.6; the 0.95 comes after a first wrong step.
    # At 2: nothing against 0.1; the 0.9 comes after a first wrong step.
    found = first_wrong_area(scores, places, ["q"] * 4)
    assert (found.auc_first_wrong, found.first_wrong_pairs) == (1.0, 5)
    assert found.auc_first_wrong_pooled == 1.0
    worse = first_wrong_area([[0.1, 0.8, 0.1], *scores[1:]], places, ["q"] * 4)
    assert worse.auc_first_wrong == pytest.approx((2.5 + 2) / 5)  # a tie counts half
    # Right ones 0.1, 0.8, 0.7, 0.8, 0.8 against 0.1, 0.6, 0.1.
    assert worse.auc_first_wrong_pooled == pytest.approx((4 * 3 + 2 * 0.5) / 15)


def test_pairs_are_of_one_question():
    apart = first_wrong_area([[0.2], [0.1], [0.9]], [-1, 0, 0], ["a", "a", "b"])
    assert apart == FirstWrongArea(1.0, 1, 0.5)
    none = first_wrong_area([[0.2], [0.1]], [-1, 0], ["a", "b"])
    assert math.isnan(none.auc_first_wrong)
    assert (none.first_wrong_pairs, none.auc_first_wrong_pooled) == (0, 1.0)
    assert math.isnan(first_wrong_area([], [], []).auc_first_wrong_pooled)


def test_steps_after_the_first_wrong_one_say_nothing():
    """Over all steps this verifier looks good, and it cannot tell the first wrong ones."""
    rows = [
        JudgedRow("q", (2.0, 1.0, 2.0), (0.5, 0.75, 1.0)),
        JudgedRow("q", (2.0, 1.0, -3.0), (0.25, 0.0, 0.0)),
        JudgedRow("q", (2.0, -3.0, -3.0), (0.0, 0.0, 0.0)),
    ]
    found = held_out_figures(rows)
    assert found["auc"] == 0.75
    assert (found["auc_first_wrong"], found["first_wrong_pairs"]) == (0.5, 3)
    assert "auc_first_wrong" not in held_out_figures(rows, judges="answers")


def test_the_first_label_of_zero():
    assert [first_zero(labels) for labels in ([0.5, 0.0, 1.0, 0.0], [0.1, 1.0], [0.0])] == [1, -1, 0]
