"""Files that people write: whatever their editor puts at the start and at the ends of lines, they are the same text."""

from __future__ import annotations

import json

import pytest

from engine.prompts.styles import read_few_shot, read_system_prompt
from engine.prompts.template import ChatTemplate

EXAMPLES = [
    {"problem": "1+1?\u2028Say it.", "solution": "2\u0085#### 2"},
    {"problem": "2+2?", "solution": "4\u2029#### 4"},
]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_examples(tmp_path, start, end):
    path = tmp_path / "examples.jsonl"
    lines = [json.dumps(example, ensure_ascii=False) for example in EXAMPLES]
    path.write_bytes((start + end.join([*lines, "", ""])).encode())
    assert read_few_shot(path) == ([(each["problem"], each["solution"]) for each in EXAMPLES], "")


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_texts(tmp_path, start, end):
    text = f"{start}Answer shortly.{end}One line:\u2028no more."
    for name in ("system.txt", "chat_template.jinja"):
        (tmp_path / name).write_bytes(text.encode())
    expected = "Answer shortly.\nOne line:\u2028no more."
    assert read_system_prompt(str(tmp_path / "system.txt")) == expected
    assert read_few_shot(tmp_path / "system.txt") == ((), expected)
    assert ChatTemplate.load(tmp_path).source == expected


def test_a_lone_surrogate_in_an_example_is_one_sentence(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text('\n{"problem": "1+1?", "solution": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"examples\.jsonl, line 2: not valid Unicode: .*ud800"):
        read_few_shot(path)
