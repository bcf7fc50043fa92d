"""Exact values of numeric answers, and when two are equal."""

from __future__ import annotations

import time

import pytest

from engine.tasks.exact import are_equal, as_number


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1/2", "0.5"),
        ("11 5/6", r"\frac{71}{6}"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"0.1\overline{6}", "1/6"),
        (r"\frac{1}{3}", "0.333333"),
        ("18.0000001", "18"),
        ("1e5", "100000"),
        ("½", r"\frac12"),
        (r"50\%", "0.5"),
        (r"50\%", "50"),
        ("1355_8", "1355_{8}"),
        ("1355_8", "1355"),
        (r"\frac{1}{2^{98}}", r"2^{-98}"),
        ("5!", "120"),
        ("2(3+4)", "14"),
        ("1:05", "01:05"),
        (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    ],
)
def test_equal(first, second):
    assert are_equal(first, second) is True
    assert are_equal(second, first) is True


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1e-7", "2e-7"),
        ("0.0000001", "0.0000002"),
        ("123456789.5", "123456789"),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
        ("100!", "101!"),
        ("2^{1000}", "2^{1001}"),
        ("1355_7", "1355_8"),
        ("1:00", "12:00"),
        ("1/3", "0.33"),
        ("4 10/3", "10"),
        ("9" * 300, "8" * 300),
    ],
)
def test_different(first, second):
    assert are_equal(first, second) is False
    assert are_equal(second, first) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        r"\sqrt{2}",
        r"2\pi",
        "1/0",
        "0^0",
        "9^{9^9}",
        "99999999!",
        "1+",
        "(",
        "{",
        "1 2",
        "12_2",
        "9" * 5000,
    ],
)
def test_no_exact_value(text):
    assert are_equal(text, "1") is None


def test_as_number():
    assert [as_number(text) for text in ("1/4", "1/3", "-7/2", "1e3", "x")] == ["0.25", "1/3", "-3.5", "1000", None]


@pytest.mark.parametrize(
    "text", ["(" * 100_000, "-" * 100_000, "1^" * 100_000, "9^" * 150 + "9", "1!" * 150, "(" * 300]
)
def test_a_hostile_text_is_refused_at_once(text):
    start = time.process_time()
    assert are_equal(text, "1") is None
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "answer",
    [r"\ne 5", "≠5", r"\le 5", "x<5", r"x \geq 5", r"5 \pmod 7", "5 mod 7", r"5\text{ or more}", "at least 5", "5,5"],
)
def test_a_number_is_no_relation_and_no_list(answer):
    assert are_equal("5", answer) is False
    assert are_equal(answer, "5") is False


@pytest.mark.parametrize("answer", ["x=5", "n = 1,000 apples", r"\frac{x}{2}", "five"])
def test_what_may_be_a_number_is_left_to_others(answer):
    assert are_equal("5", answer) is None
