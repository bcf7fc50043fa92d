"""When a box ends an answer: once it is filled, closed, and outside the thoughts."""

import pytest

from engine.prompts.boxed import after_thoughts, has_closed_box


@pytest.mark.parametrize(
    ("text", "is_closed"),
    [
        (r"So \boxed{7}", True),
        (r"So \boxed{\frac{1}{2}}", True),
        (r"So \boxed{7", False),
        (r"I put it within \boxed{}", False),
        (r"I put it within \boxed{...}.", False),
        (r"Within \boxed{}: \boxed{7}", True),
        (r"<think>Perhaps \boxed{7}", False),
        (r"<think>Perhaps \boxed{7}</think>", False),
        (r"<think>Perhaps \boxed{7}</think> It is \boxed{8}", True),
        (r"\boxed{\}", False),
    ],
)
def test_which_box_ends_an_answer(text, is_closed):
    assert has_closed_box(text) is is_closed


def test_what_is_stated_outside_thoughts():
    assert after_thoughts("a<think>b</think>c") == "c"
    assert after_thoughts("a</think>b<think>c") == "b"
    assert after_thoughts("a") == "a"


def test_a_text_without_a_box_has_none():
    text = "x {y} \\text{z}\n" * 200
    assert not has_closed_box(text)
    assert has_closed_box("\\boxed{1}" + text)
