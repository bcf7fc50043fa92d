"""What stands around a problem, style by style."""

from __future__ import annotations

import pytest

from engine.prompts import PROMPT_STYLES, build_prompt, has_closed_box, read_system_prompt
from engine.prompts.styles import BOXED_PROMPT, STEPS_PROMPT
from tests.verifiers.tokenizers import CHATML

SYSTEM = {"steps": STEPS_PROMPT, "boxed": BOXED_PROMPT}


@pytest.fixture
def chat(tmp_path):
    folder = tmp_path / "chat"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def test_plain_is_the_prompt_itself(chat):
    assert build_prompt(chat).render("1 + 1\n") == "1 + 1\n"


@pytest.mark.parametrize("style", ["chat", "steps", "boxed"])
def test_a_chat(chat, style):
    prompt = build_prompt(chat, style)
    system = turn("system", SYSTEM[style]) if style in SYSTEM else ""
    assert prompt.render("1 + 1\n") == system + turn("user", "1 + 1") + "<|im_start|>assistant\n"
    assert (prompt.delimiter, prompt.stops_at_box) == (("\n\n", True) if style in SYSTEM else (None, False))


@pytest.mark.parametrize("style", ["steps", "boxed"])
def test_a_style_without_a_template_is_paragraphs(tmp_path, style):
    assert build_prompt(tmp_path, style).render("1 + 1\n") == f"{SYSTEM[style]}\n\n1 + 1\n"


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_a_system_prompt_of_ones_own(chat, style):
    prompt = build_prompt(chat, style, system="Be brief.")
    wanted = "Be brief.\n\n1" if style == "plain" else turn("system", "Be brief.") + turn("user", "1")
    assert prompt.render("1").startswith(wanted)


def test_worked_examples(chat, tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text('{"problem": "2 + 2", "solution": "4\\n"}\n\n{"problem": "3 + 3", "solution": "6"}\n')
    plain = build_prompt(chat, few_shot=path, as_prompt=lambda text: text + "\n")
    assert plain.render("1 + 1\n") == "2 + 2\n4\n\n3 + 3\n6\n\n1 + 1\n"
    turns = [turn("user", "2 + 2"), turn("assistant", "4"), turn("user", "3 + 3"), turn("assistant", "6")]
    chatted = build_prompt(chat, "chat", few_shot=path).render("1 + 1")
    assert chatted == "".join([*turns, turn("user", "1 + 1"), "<|im_start|>assistant\n"])


def test_a_preface(chat, tmp_path):
    path = tmp_path / "shots.txt"
    path.write_text("Q: 2 + 2\nA: 4\n\n")
    assert build_prompt(chat, few_shot=path).render("1 + 1\n") == "Q: 2 + 2\nA: 4\n\n1 + 1\n"
    assert turn("user", "Q: 2 + 2\nA: 4\n\n1 + 1") in build_prompt(chat, "chat", few_shot=path).render("1 + 1\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no example"),
        (b"{", "line 1: needs 'problem' and 'solution'"),
        (b'{"problem": "a", "solution": "b"}\n{"problem": "a"}', "line 2: needs 'problem' and 'solution'"),
        (b'{"problem": "a", "solution": 3}', "line 1: 'problem' and 'solution' must be texts"),
        (b"[1]", "line 1: needs"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_examples_that_are_none(chat, tmp_path, content, words):
    path = tmp_path / "shots.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        build_prompt(chat, few_shot=path)


def test_what_is_not_there(chat, tmp_path):
    with pytest.raises(ValueError, match="prompt_style must be one of plain, chat, steps, boxed, got 'loud'"):
        build_prompt(chat, "loud")
    with pytest.raises(ValueError, match="prompt_style 'chat' needs a chat template"):
        build_prompt(tmp_path, "chat")
    with pytest.raises(ValueError, match="no few-shot file at 'nowhere'"):
        build_prompt(chat, few_shot="nowhere")


def test_a_system_prompt_is_a_file_or_a_text(tmp_path):
    (tmp_path / "system.txt").write_text("From a file.\n")
    assert read_system_prompt(str(tmp_path / "system.txt")) == "From a file."
    for text in ("Be brief.", "x" * 10_000, "a\0b", ""):
        assert read_system_prompt(text) == text
    (tmp_path / "system.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_system_prompt(str(tmp_path / "system.txt"))


@pytest.mark.parametrize(
    ("text", "is_closed"),
    [
        ("", False),
        ("x} \\boxed", False),
        ("\\boxed{3}", True),
        ("\\boxed{\\frac{1}{2}", False),
        ("so \\boxed{\\frac{1}{2}} and", True),
        ("\\boxed{\\{1, 2\\}", False),
        ("\\boxed{\\{1, 2\\}}", True),
        ("\\boxed{a\\\\}", True),
        ("\\boxed{" + "{" * 10_000 + "}" * 10_000, False),
        ("\\boxed{" + "{" * 10_000 + "}" * 10_001, True),
    ],
)
def test_a_closed_box(text, is_closed):
    assert has_closed_box(text) == is_closed
