import pytest

from engine.reports.charts import accuracy_curves
from engine.results.pools import (
    accuracy_at,
    pool_vote,
    sample_accuracy,
    sub_budgets,
)
from tests.reports.builders import make_pool, make_row


def test_the_vote_is_the_one_that_gives_the_predictions():
    answers, scores = ["1", "2", "2"], [0.6, 0.3, 0.4]
    assert pool_vote("best-of-n", [make_pool(answers, scores, pred="2")]) == "weighted"
    assert pool_vote("best-of-n", [make_pool(answers, scores, pred="1")]) == "naive"
    assert pool_vote("majority", [make_pool(answers, scores, pred="1")]) is None
    assert pool_vote("beam", [make_pool(answers, scores, pred="2")]) is None
    assert pool_vote("majority", [make_row(strategy="majority")]) is None  # answers not known


def test_smaller_budgets_use_every_sample_once():
    row = make_pool(["2", "3", "2", "2", "9", "9", "9"], [0.5] * 7, pred="2")
    assert accuracy_at(row, "majority", 1) == pytest.approx(3 / 7)
    assert accuracy_at(row, "majority", 2) == pytest.approx(2 / 3)  # 2 3 | 2 2 | 9 9, the last is left over
    assert accuracy_at(row, "majority", 4) == 1.0
    assert accuracy_at(row, "majority", 8) == 1.0  # all seven, the most there are: a tie that goes to 2
    assert sample_accuracy(row) == pytest.approx(3 / 7)
    assert sample_accuracy(make_row()) is None
    assert sub_budgets(16) == [1, 2, 4, 8]
    assert sub_budgets(6) == [1, 2, 4]
    assert sub_budgets(1) == []


def test_an_answer_that_the_grader_accepts_is_right_though_spelt_otherwise():
    row = make_pool(["0.5", "1/2", "0.5", "4"], [0.5] * 4, answer="1/2", pred="0.5", correct=True)
    assert sample_accuracy(row) == 0.75
    assert sample_accuracy(row | {"correct": False}) == 0.25


def test_curves_have_measured_and_derived_points():
    pools = [make_pool(["2", "3", "2", "2"], [0.5] * 4, problem=f"p{n}", strategy="majority") for n in range(5)]
    beams = [make_row(f"p{n}", strategy="beam", budget=4, correct=n > 0) for n in range(5)]
    curves = accuracy_curves(pools + beams)
    line = [(point.budget, point.accuracy, point.is_measured) for point in curves["majority"]]
    assert line == [(1, 0.75, False), (2, 1.0, False), (4, 1.0, True)]
    assert [(point.budget, point.accuracy, point.is_measured) for point in curves["beam"]] == [(4, 0.8, True)]
    measured = [row | {"budget": 2, "correct": False} for row in pools]
    assert [point.accuracy for point in accuracy_curves(pools + measured)["majority"]] == [0.75, 0.0, 1.0]
