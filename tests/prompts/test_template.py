"""Chat templates: as transformers renders them, and none of them hangs, fills or runs anything."""

from __future__ import annotations

import json
import time

import pytest
from transformers import PreTrainedTokenizerFast

from engine.prompts import ChatTemplate
from engine.tasks.tokenizer import build_tokenizer
from tests.verifiers.tokenizers import CHATML, LLAMA_CHAT

MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "What is <b>1 + 1</b>? {{ 7 * 7 }} é"},
    {"role": "assistant", "content": " 2 "},
]
LOOPS = (
    "{%- for m in messages if m.role != 'system' %}\n"
    "    {%- if loop.index > 5 %}{% break %}{% endif %}\n"
    "    {%- generation %}[{{ m | tojson }}]{% endgeneration %}\n"
    "{%- endfor %}{{ eos_token ~ (bos_token if bos_token is defined else 'none') }}\n"
)


def theirs(source: str, **options) -> str:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = source
    return tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options)


@pytest.mark.parametrize("source", [CHATML, LLAMA_CHAT, LOOPS])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_as_transformers_renders(source, add_generation_prompt):
    template = ChatTemplate(source, {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"})
    ours = template.render(MESSAGES, add_generation_prompt=add_generation_prompt)
    assert ours == theirs(source, add_generation_prompt=add_generation_prompt)
    assert ours == template.render(MESSAGES, add_generation_prompt=add_generation_prompt)


def test_a_long_conversation():
    messages = [{"role": "user", "content": "é" * 50_000 + str(i)} for i in range(10)]
    text = ChatTemplate(CHATML).render(messages)
    assert text == "".join(f"<|im_start|>user\n{message['content']}<|im_end|>\n" for message in messages)


def test_the_date_stands_still():
    """A prompt must be the same tomorrow."""
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}").render(MESSAGES) == "26 Jul 2024"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{% for i in range(9) %}{{ again() }}{% endfor %}{% endmacro %}{{ again() }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_a_template_that_never_ends_or_grows_without_end(source):
    template = ChatTemplate(source, origin="the chat template of m")
    start = time.process_time()
    with pytest.raises(ValueError, match=r"the chat template of m (was stopped|cannot be rendered)") as caught:
        template.render(MESSAGES)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 1.0, "it costs this process nothing"
    template.source = "{{ messages[2].content }}"
    assert template.render(MESSAGES) == " 2 ", "the next text is rendered"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ messages.append(1) }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% include 'worker.py' %}",
        "{% import os %}",
        "{% for %}",
        "{{ raise_exception('no system prompt') }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_reaches_out_or_fails(source):
    with pytest.raises(ValueError, match=r"the chat template cannot be rendered: .+"):
        ChatTemplate(source).render(MESSAGES)


def test_where_a_template_stands(tmp_path):
    assert ChatTemplate.load(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "{{ eos_token }}", "eos_token": {"content": "<e>"}}))
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "<e>"
    named = [{"name": "tools", "template": "tools"}, {"name": "default", "template": "the default"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "the default"
    (tmp_path / "chat_template.jinja").write_text("a file of its own")
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "a file of its own"


def test_a_folder_that_transformers_wrote(tmp_path):
    tokenizer: PreTrainedTokenizerFast = build_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == theirs(CHATML)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template must be a text, got '3'"),
        ("chat_template.jinja", b"\xff\xfe\xfa", "not UTF-8"),
        ("chat_template.jinja", b"a" * 300_000, "300000 characters, at most 262144"),
        ("chat_template.jinja", b"a" * 2_000_000, "2000000 bytes"),
    ],
)
def test_a_file_that_holds_none(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        ChatTemplate.load(tmp_path)


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
)
MISTRAL = GEMMA.replace("{{ raise_exception('No system role') }}", "")  # roles must alternate from the first


@pytest.mark.parametrize("source", [GEMMA, MISTRAL])
def test_a_system_prompt_that_is_refused_goes_to_the_user(source):
    template = ChatTemplate(source, {"bos_token": "<bos>"})
    said = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    folded = [{"role": "user", "content": "Be brief.\n\n1+1?"}, *said[1:]]
    system = {"role": "system", "content": "Be brief.\n"}
    assert template.render([system, *said]) == template.render(folded)
    assert template.render([system, *said]).startswith("<bos><start_of_turn>user\nBe brief.\n\n1+1?<end_of_turn>")
    for others in ([], said[1:]):
        with pytest.raises(ValueError, match="cannot be rendered: TemplateError"):
            template.render([system, *others])
    with pytest.raises(ValueError, match="roles must alternate"):
        template.render([system, *said, said[0]])
