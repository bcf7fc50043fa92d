"""Steps of texts whose tokens are not known."""

import pytest

from engine.errors import UserError
from engine.remote.steps import TextSteps


@pytest.mark.parametrize(
    ("delimiter", "text", "finish", "want"),
    [
        ("\n", "a\nb\n", "eos", ["a\n", "b\n", ""]),
        ("\n", "a\nb", "eos", ["a\n", "b"]),
        ("\n", "\n\na\n\nb", "length", ["\n\na\n", "\nb"]),
        ("\n", "a\r\nb\n", "length", ["a\r\n", "b\n"]),
        ("\n\n", "a\nb\n\n\n\nc\n\n", "length", ["a\nb\n\n", "\n\nc\n\n"]),
        ("\n\n", "a\r\n\r\nb", "eos", ["a\r\n\r\n", "b"]),
        ("\n", "", "eos", [""]),
        ("\n", "", "length", [""]),
        (". ", "a. b. \\boxed{1}", "boxed", ["a. ", "b. ", "\\boxed{1}"]),
    ],
)
def test_texts_are_split_after_delimiters(delimiter, text, finish, want):
    for num_tokens in (0, 1, 2, 7, 1000):
        steps = TextSteps(delimiter).split(text, num_tokens, finish)
        assert [step.text for step in steps] == want
        assert [step.finish for step in steps] == ["step"] * (len(want) - 1) + [finish]
        assert sum(step.num_tokens for step in steps) == num_tokens
        assert all(step.num_tokens >= 0 and step.token_ids == () for step in steps)


def test_tokens_are_divided_by_length_and_the_end_of_text_is_one():
    steps = TextSteps("\n").split("123\n1\n", 13, "eos")
    assert [step.num_tokens for step in steps] == [8, 4, 1]


@pytest.mark.parametrize("delimiter", ["", "x" * 65])
def test_a_delimiter_has_a_length(delimiter):
    with pytest.raises(UserError, match="1 to 64 characters"):
        TextSteps(delimiter)
