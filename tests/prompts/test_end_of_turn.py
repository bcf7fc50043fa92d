"""Answers of a chat end where its template ends a turn, whatever the model's files say of its end tokens."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from engine import Engine, Majority
from engine.prompts import PROMPT_STYLES, ChatTemplate, build_prompt
from engine.runtime import LLM
from tests.docs.builders import word_policy
from tests.model.folders import change_config
from tests.verifiers.tokenizers import CHATML, LLAMA_CHAT

LLAMA_2 = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} <|im_end|>{% endif %}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[1].content }}<|im_end|>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A chat whose files name another end token than that of its template."""
    folder = word_policy(tmp_path_factory.mktemp("chat") / "policy")
    change_config(folder, eos_token_id=0)
    (folder / "generation_config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("source", "rest"),
    [
        (CHATML, "<|im_end|>\n"),
        (LLAMA_CHAT, "<|eot|>"),
        (LLAMA_2, " <|im_end|>"),
        ("{{ messages[1].content }}", ""),
        ("{{ messages[0].content }}", ""),
        ("{{ raise_exception('two messages') }}", ""),
    ],
)
def test_what_follows_an_answer(source, rest):
    assert ChatTemplate(source).after_answer() == rest


@pytest.mark.parametrize(
    ("source", "token"),
    [(CHATML, "<|im_end|>"), (LLAMA_2, "<|im_end|>"), (NO_SYSTEM, "<|im_end|>"), (LLAMA_CHAT, None)],
)
def test_the_end_of_turn_is_a_token_of_the_model(folder, tmp_path, source, token):
    tokenizer = LLM.load(folder, num_blocks=8).tokenizer
    (tmp_path / "chat_template.jinja").write_text(source)
    end = build_prompt(tmp_path, "chat").end_of_turn(tokenizer)
    assert end == (None if token is None else tokenizer.token_to_id(token))


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_a_chat_ends_there_and_plain_text_does_not(folder, style):
    engine = Engine.load(folder, prompt_style=style, num_blocks=256)
    im_end = engine.policy.tokenizer.token_to_id("<|im_end|>")
    assert engine.policy.config.eos_token_ids == ((0,) if style == "plain" else (0, im_end))
    (result,) = engine.search(["1 + 1"], Majority(), 16, max_tokens=200)
    has_end = {im_end in engine.policy.encode(candidate.text) for candidate in result.candidates}
    assert not any(has_end)
    ended = [candidate.finish for candidate in result.candidates].count("eos")
    assert (ended >= 8) == (style != "plain"), "its end of turn is likely, its end of text is not"


def test_a_reviser_ends_there_too(folder, tmp_path):
    reviser = word_policy(tmp_path / "reviser", seed=1)
    change_config(reviser, eos_token_id=0)
    (reviser / "generation_config.json").unlink()
    engine = Engine.load(folder, reviser=reviser, prompt_style="chat", num_blocks=64)
    assert engine.reviser.config.eos_token_ids == engine.policy.config.eos_token_ids


def test_a_model_without_any_end_says_so(folder, tmp_path, recwarn):
    endless = word_policy(tmp_path / "endless")
    change_config(endless, eos_token_id="absent")
    (endless / "generation_config.json").unlink()
    Engine.load(folder, num_blocks=64)
    Engine.load(endless, num_blocks=64, prompt_style="chat")
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"endless names no end-of-text token .* run on to max_tokens"):
        Engine.load(endless, num_blocks=64)


def test_a_token_without_text_ends_nothing(tmp_path):
    class Tokenizer:
        def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
            return {7: AddedToken("")}

    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert build_prompt(tmp_path, "chat").end_of_turn(Tokenizer()) is None
