"""Policies with a chat template are given whole conversations by it; a verifier the last message alone."""

import pytest

from engine.engine import Engine
from engine.serve.errors import APIError
from engine.serve.prompts import Prompts
from engine.serve.schema import ChatMessage
from engine.types import Rendered
from tests.docs.builders import word_policy
from tests.verifiers.builders import make

from .builders import assert_unused, call, serving

SAID = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "How many "}, {"type": "text", "text": "mugs?"}]},
    {"role": "assistant", "content": "72"},
    {"role": "user", "content": " And stamps? "},
]
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many mugs?<|im_end|>\n"
    "<|im_start|>assistant\n72<|im_end|>\n<|im_start|>user\nAnd stamps?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    folder = tmp_path_factory.mktemp("models")
    return Engine.load(word_policy(folder / "policy"), prm=make(folder / "prm", "qwen-prm", seed=1), task="math")


def messages(said) -> list[ChatMessage]:
    return [ChatMessage.model_validate(each) for each in said]


def test_a_conversation_is_rendered(engine):
    problem = Prompts(engine).of_chat(messages(SAID))
    assert (problem.conversation, type(problem.asked)) == (RENDERED, Rendered)
    assert problem.prompt == engine.as_problem(" And stamps? ", 0).prompt
    assert engine.policy.tokenizer.decode(engine.prompt_ids(problem.asked), skip_special_tokens=False) == RENDERED
    assert Prompts(engine).of_text("And stamps?").asked == "And stamps?"


def test_a_searched_conversation(engine):
    """What the verifier reads is the last message: its own template would nest the policy's."""
    body = {"model": "home@beam-4", "messages": SAID, "seed": 1, "max_tokens": 24}
    with serving(engine) as server:
        status, answer, _ = call(server, "POST", "/v1/chat/completions", body)
        plain = call(server, "POST", "/v1/chat/completions", {**body, "model": "home"})[1]
        other = call(server, "POST", "/v1/chat/completions", {**body, "model": "home", "messages": SAID[-1:]})[1]
    assert status == 200
    problem = Prompts(engine).of_chat(messages(SAID))
    assert answer["usage"]["prompt_tokens"] == len(engine.prompt_ids(RENDERED))
    assert plain["choices"] != other["choices"], "what was said before matters"
    assert engine.resolve_verifier("prm").opening(problem) == engine.resolve_verifier("prm").opening(
        engine.as_problem(" And stamps? ", 0)
    )
    assert_unused(engine)


def test_a_conversation_ends_with_the_user(engine):
    with pytest.raises(APIError, match="last message"):
        Prompts(engine).of_chat(messages(SAID[:3]))
