"""Texts that become tokens: those that cannot, and those that are too long for it to be tried."""

from __future__ import annotations

import time

import pytest

from engine.runtime import LLM
from tests.tiny import tiny_policy


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM.load(tiny_policy(tmp_path_factory.mktemp("model") / "policy"), num_blocks=64)


@pytest.mark.parametrize("call", ["open", "encode"])
def test_what_cannot_be_tokenized_is_one_sentence(llm, call):
    with pytest.raises(ValueError, match=r"not valid Unicode: '1;\\ud800'"):
        getattr(llm, call)("1;\ud800")
    start = time.process_time()
    with pytest.raises(ValueError, match=r"a text of 20000000 characters is more than the \d+ tokens .* got '1;1;"):
        getattr(llm, call)("1;" * 10_000_000)
    assert time.process_time() - start < 1  # the tokenizer alone would take a minute
    assert llm.encode("b4?")


def test_a_step_is_tokenized_at_any_length(llm):
    """A verifier leaves out an answer that is too long for it, and the search goes on."""
    text = "1" * (llm.vocabulary.most_characters(llm.config.context) + 1)
    assert len(llm.encode(text, is_start=False)) == len(text)
