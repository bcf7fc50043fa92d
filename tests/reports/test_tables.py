import io
import random

import numpy as np
import pytest
from rich.console import Console

from engine.reports import compare, markdown_table, summarize, terminal_table
from engine.reports.tables import quantity
from engine.results.statistics import bootstrap_interval, mean_interval, wilson_interval
from tests.reports.builders import make_row


def rows_of(strategy, verdicts, **fields):
    return [make_row(f"p{n}", strategy=strategy, correct=v, **fields) for n, v in enumerate(verdicts)]


def test_wilson_agrees_with_published_values():
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="got 0"):
        wilson_interval(0, 0)


def test_bootstrap_matches_the_normal_interval_of_a_mean():
    values = np.random.default_rng(1).random(400).tolist()
    low, high = bootstrap_interval(values, range(400))
    half = 1.96 * np.std(values) / 20
    assert low == pytest.approx(np.mean(values) - half, abs=0.004)
    assert high == pytest.approx(np.mean(values) + half, abs=0.004)
    assert (low, high) == bootstrap_interval(values, range(400))
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([], [])


def test_seeds_of_one_problem_are_no_new_problems():
    rng = random.Random(0)
    verdicts = [float(rng.random() < 0.5) for _ in range(60)]
    once = mean_interval(verdicts, range(60))
    copied = mean_interval(verdicts * 4, list(range(60)) * 4)  # four seeds that always agree
    assert copied == pytest.approx(once, abs=0.03)
    pretended = mean_interval(verdicts * 4, range(240))
    assert pretended[1] - pretended[0] < 0.6 * (copied[1] - copied[0])


def test_an_interval_of_equal_values_has_a_width():
    low, high = mean_interval([1.0] * 20, list(range(10)) * 2)
    assert (low, high) == wilson_interval(10, 10)


def test_summaries_count_and_average():
    rows = rows_of("beam", [True, False, None, True]) + rows_of("beam", [True] * 4, seed=1, num_errors=2)
    (summary,) = summarize(rows)
    assert (summary.num_rows, summary.num_problems, summary.num_seeds, summary.num_graded) == (8, 4, 2, 7)
    assert summary.accuracy == pytest.approx(6 / 7)
    assert summary.low < summary.accuracy < summary.high
    assert summary.num_errors == 8
    assert summary.seconds is None
    assert summary.tokens["generated"] == 12
    assert summary.flops["generated"] == 1200


def test_strategies_and_budgets_stand_in_order():
    order = [
        ("single", 1),
        ("majority", 4),
        ("majority", 16),
        ("best-of-n", 16),
        ("beam", 16),
        ("a", 1),
        ("z", 1),
    ]
    rows = [make_row(strategy=strategy, budget=budget) for strategy, budget in order]
    assert [(s.strategy, s.budget) for s in summarize(rows[::-1])] == order


def test_accuracy_replaces_correct():
    rows = [
        make_row("a", strategy="single", correct=None, accuracy=0.25),
        make_row("b", correct=False, accuracy=0.75),
    ]
    assert [summary.accuracy for summary in summarize(rows)] == [0.25, 0.75]


def test_costs_leave_cached_tokens_out_of_forwards():
    row = make_row()
    row["ledger"]["tokens"].update(generated=100, cached=1000, verified=50)
    row["ledger"]["flops"].update(generated=300, verified=100)
    (summary,) = summarize([row])
    assert (summary.total_tokens, summary.total_flops, summary.verifier_share) == (150, 400, 0.25)
    assert summary.as_dict()["verifier_share"] == 0.25
    assert summary.as_dict()["tokens"]["cached"] == 1000


def test_seconds_come_from_the_caller_or_the_rows():
    rows = rows_of("beam", [True, True], seconds=1.5)
    assert summarize(rows)[0].seconds == 3.0
    assert summarize(rows, seconds={"beam": 9.0})[0].seconds == 9.0
    several = rows + rows_of("beam", [True], budget=4)  # one clock for two budgets tells neither
    assert [summary.seconds for summary in summarize(several, seconds={"beam": 9.0})] == [3.0, None]


def test_no_verdict_is_no_accuracy():
    (summary,) = summarize(rows_of("beam", [None, None]))
    assert (summary.accuracy, summary.low, summary.high) == (None, None, None)
    assert "| beam | 1 | 2 | - | 12 |" in markdown_table([summary])


def test_comparisons_are_paired_and_say_when_beam_is_below():
    rows = rows_of("best-of-n", [True] * 8 + [False] * 12) + rows_of("beam", [True] * 6 + [False] * 14)
    rows += rows_of("single", [None] * 20, accuracy=0.2, budget=3)
    found = {(each.better, each.worse): each for each in compare(rows)}
    assert set(found) == {("best-of-n", "single"), ("beam", "best-of-n")}
    below = found["beam", "best-of-n"]
    assert below.points == pytest.approx(-10)
    assert below.low < -10 < below.high <= 0
    assert str(below).startswith("At budget 1 beam is not above but 10.0 points below best-of-n (95 % interval -2")
    assert "best-of-n is 20.0 points above single" in str(found["best-of-n", "single"])


def test_other_problems_and_budgets_are_not_compared():
    assert compare([*rows_of("beam", [True]), make_row("other", strategy="best-of-n")]) == []
    assert compare(rows_of("beam", [True]) + rows_of("best-of-n", [True], budget=2)) == []
    (level,) = compare(rows_of("beam", [True]) + rows_of("best-of-n", [True]))
    assert "beam is level with best-of-n" in str(level)


def test_the_terminal_table_fits_80_columns():
    rows = [
        row for name in ("single", "majority", "best-of-n", "beam", "lookahead") for row in rows_of(name, [True] * 500)
    ]
    for row in rows:
        row["budget"] = 16
        row["ledger"]["tokens"]["verified"] = row["ledger"]["flops"]["verified"] = 10**6
    summaries = summarize(rows, seconds={"beam": 1234.5})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(summaries, compare(rows)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "100.0 (99.2-100.0)" in text
    assert "1234.5" in text
    assert "lookahead " in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (7.0, "7"),
        (7.25, "7.25"),
        (950, "950"),
        (999.7, "1.00 k"),
        (12_345, "12.3 k"),
        (999_600, "1.00 M"),
        (4.56e9, "4.56 G"),
        (123e12, "123 T"),
        (1e22, "10000 E"),
    ],
)
def test_quantities_have_three_digits(amount, text):
    assert quantity(amount) == text
