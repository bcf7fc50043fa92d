"""Where a completion states its answer, and which answers are plainly the same."""

from __future__ import annotations

import time

import pytest

from engine.prompts.boxed import has_closed_box
from engine.tasks.answers import (
    answer_key,
    boxed,
    extract_expression,
    extract_number,
    plain_number,
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}$", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed 9$", "9"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\{}", r"\{"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{4} and \boxed{5", "4"),  # the last one was cut off
        (r"\boxed{4", None),
        (r"It goes in \boxed{}. So \boxed{4}, not \boxed{ }.", "4"),
        (r"Write \boxed{...}: \boxed{5}", "5"),
        (r"}}} \boxed{6}", "6"),
        (r"\\boxed{1}", None),  # a line break and the word "boxed"
        ("5", None),
        ("", None),
    ],
)
def test_boxed(text, content):
    assert boxed(text) == content


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("9 + 9 = <<9+9=18>>18\n#### 18", "18"),
        ("#### 3\nno:\n#### 1,234.50 dollars", "1234.5"),
        (r"The answer is \boxed{\$70{,}000}.", "70000"),
        (r"12 eggs. \boxed{18 \text{ dollars}} of 20", "18"),
        (r"\boxed{5 + 13 = 18}", "18"),
        ("She has 3 cats and -4 dogs.", "-4"),
        ("It is 10-3", "3"),  # no sign but a difference
        ("That makes $1,080.", "1080"),
        ("x = .5", "0.5"),
        ("about 007", "7"),
        ("none at all", None),
        ("Answer: 42 (6*7)", "42"),
        ("**Answer:** 42 (that is 6 * 7)", "42"),
        ("Final answer: 42\nCheck: 40+2", "42"),
        ("Answer: 5 friends have 3 each, so 15.", "15"),  # it begins the work
        ("the answer is 42 ... it is not 43", "42"),
        ("She has 3 million.", "3000000"),
        ("The answer is 2.5 million people.", "2500000"),
        ("It costs $1,500 thousand, in all.", "1500000"),
        ("#### unknown", None),
        ("", None),
        ("#### \u22123", "-3"),
        ("It fell by 4 to \u20137.", "-7"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{\frac13}", "1/3"),
        (r"\boxed{3\frac{1}{2}}", "3.5"),
        ("#### 11 5/6 cups", "71/6"),
        ("#### 2.5e3", "2500"),
        (r"\boxed{2.5 \times 10^{3}}", "2500"),
        (r"\boxed{70 000}", "70000"),
        (r"\boxed{70\,000}", "70000"),
        (r"\boxed{5!}", "120"),
        (r"\boxed{2^{10}}", "1024"),
        (r"\boxed{{-}5}", "-5"),
        (r"\boxed{2^{10} \text{ bytes}}", "1024"),
        (r"\boxed{5:30}", None),
        (r"\boxed{5x}", "5"),
        (r"\boxed{} so it is 8", "8"),
        ("<think>I get \\boxed{7}, wait.</think>\nThe answer is 8, of 9.", "8"),
        ("The answer is **7**.", "7"),
        ("<think>It is 5", None),
        ("#### Step 1: add\n3 + 4\n#### 2. Check\nThe answer is $7$.", "7"),
        ("The answer is 5. I hope that the answer is clear, in 3 steps.", "5"),
        ("#### 42\n\nI hope that it is clear, in 3 steps.", "42"),
    ],
)
def test_numbers(completion, answer):
    assert extract_number(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"Thus $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("Final Answer: The final answer is $2x+1$. I hope it is correct.", "2x+1"),
        ("the answer is: (C).", "(C)"),
        ("#### 12", "12"),
        (r"\boxed{}", None),
        (r"The answer is \boxed{7}. I used \boxed{} as asked.", "7"),
        ("The answer is **7**.", "7"),
        (r"<think>First \boxed{3}.</think> So \boxed{4}", "4"),
        (r"<think>First \boxed{3}.</think> The answer is 4", "4"),
        ("The answer is\nunknown", None),
        ("42", None),
        ("Let me see what the answer is.\nFinal Answer: 5", "5"),
        ("First check whether the answer is positive.\n**Answer:** 42", "42"),
        ("The answer is not obvious at first.\nFinal Answer: 42", "42"),
        ("#### Step 1: add\n3 + 4\nThe answer is $7$.", "7"),
        ("The answer is 7.\n#### Step 3: check\nIt holds.", "7"),
        ("Final Answer: 7\nI hope that the answer is right.", "7"),
        ("The answer is 7, so the answer is.", "7, so the answer is"),
        ("#### Evelyn", "Evelyn"),
        ("The answer is St. Louis", "St. Louis"),
        ("The answer is St. Louis. It is in Missouri.", "St. Louis"),
        ("The answer is `x` where x is 3.", "x"),
        ("The answer is `x` of 3.", "x of 3"),
    ],
)
def test_expressions(completion, answer):
    assert extract_expression(completion) == answer


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1,234", "$1234.00"),
        (r"\$32,\!348", "32348"),
        ("-0", "0"),
        ("+5", "05"),
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"\text{Evelyn}", "Evelyn"),
        ("p - q", "p-q"),
        (r"\(7\)", r"\[ 7. \]"),
        ("10{,}000", "10000"),
    ],
)
def test_written_alike(first, second):
    assert answer_key(first) == answer_key(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1 1/2", "11/2"),
        ("1,2", "12"),
        ("5", "-5"),
        (r"\text{a}b", "ab"),
        ("1,23", "123"),
        (r"50\%", "50"),
        (r"\leftarrow", "arrow"),
        (r"\$5\$", "5"),
    ],
)
def test_not_written_alike(first, second):
    assert answer_key(first) != answer_key(second)


def test_plain_numbers():
    assert plain_number("-$01,234.50") == "-1234.5"
    assert all(plain_number(text) is None for text in ("", "-", ".", "1,2,3", "1/2", "5%", "--5", "x", "1e5", "٣"))


def a_million(text: str) -> str:
    return text * (1_000_000 // len(text))


REPEATED = [
    *("{", "}", "{}", r"\boxed{", r"\boxed{}", r"\boxed{1}", r"\boxed ", r"\fbox{", r"5\text{ "),
    *("9", "1,", "111,", "1.", "1 ", "$", r"\(", "½", "√", ".", " ", "-", "\ud800"),
    *("####", "answer is ", "answer is\n", "<think>", "</think>", "**7** "),
]
HOSTILE = {
    **{text: a_million(text) for text in REPEATED},
    "nested": a_million("{")[::2] + a_million("}")[::2],
    "nested boxes": r"\boxed{" * 120_000 + "}" * 120_000,
    "a long box": r"\boxed{" + "1e5 " * 250_000 + "}",
    "stated at length": "The answer is " + "=" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=map(ascii, HOSTILE))
@pytest.mark.parametrize("function", [boxed, has_closed_box, extract_number, extract_expression, answer_key])
def test_a_million_hostile_characters_are_read_at_once(function, text):
    start = time.process_time()
    function(text)
    assert time.process_time() - start < 0.4  # under 0.1 s on a machine with nothing else to do


@pytest.mark.parametrize("blank", [" ", "~", r"\,", r"\quad", r"\ "])
@pytest.mark.parametrize("function", [extract_number, extract_expression, answer_key])
@pytest.mark.parametrize("around", ["x%sx", "5%sx", r"\boxed{x%sx}", "The answer is x%sx"])
def test_blanks_within_a_short_answer_are_read_at_once(function, around, blank):
    """Texts of up to 1,999 characters, in which notation is looked for."""
    text = around % (blank * ((1999 - len(around)) // len(blank)))
    start = time.process_time()
    function(text)
    assert time.process_time() - start < 0.1  # a few milliseconds on a machine with nothing else to do


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("So we get 1/2.", "0.5"),
        ("So we get ½.", "0.5"),
        (r"So we get $3\frac{1}{2}$.", "3.5"),
        ("So it is 2^10.", "1024"),
        ("So he has 5e3 dollars.", "5000"),
        ("That is 3.5 × 10^4 people.", "35000"),
        (r"It is $1.5 \times 10^{-3}$ m.", "0.0015"),
        (r"It is 2,500 \cdot 10^2", "250000"),
        ("It is 1.5e-3", "0.0015"),
        ("There are 6.02e23", "602" + "0" * 21),
        ("So it is 2^-1.", "0.5"),
        ("They meet at 5:30.", None),
        ("The answer is 5. No, the answer is 7.", "7"),
        ("#### 5 #### 7", "7"),
        ("x" * 1_000_000 + " 12", "12"),
        ("12 " + "x" * 1_000_000, "12"),
        ("#### 12 " + "x" * 1_000_000, "12"),
        ("#### " + "9" * 3000 + "x", None),  # no number that was cut off
    ],
    ids=lambda text: ascii(text)[:24],
)
def test_numbers_of_a_text_that_names_no_answer(completion, answer):
    assert extract_number(completion) == answer
