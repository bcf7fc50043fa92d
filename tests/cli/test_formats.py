"""Prompts and verifier formats on the command line: each option changes the rows, or is refused in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.conftest import assert_refused, small_search
from tests.prompts.builders import boxing_policy
from tests.verifiers.builders import make

CHAT = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}={% endif %}"
BEST = ["--strategy", "best-of-n"]


@pytest.fixture(scope="session")
def chatting(models, tmp_path_factory):
    """The tiny policy with a chat template."""
    folder = shutil.copytree(models.policy, tmp_path_factory.mktemp("chatting") / "policy")
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.fixture(scope="session")
def judges(tmp_path_factory):
    """Folders of verifiers by the names of their formats."""
    root = tmp_path_factory.mktemp("judges")
    return {name: make(root / name, name) for name in ("versaprm", "qwen-prm", "qwen-rm")}


@pytest.fixture
def shots(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(json.dumps({"problem": "1;+1", "solution": "1+1=2"}) + "\n")
    return path


def test_prompts(search, chatting, shots, tmp_path):
    """Options that change what stands before the problem; no two of the prompts make the same rows."""
    (tmp_path / "system.txt").write_text("7;7;7")
    ways = [
        [],
        ["--prompt-style", "chat"],
        ["--system-prompt", "8;8"],
        ["--system-prompt", tmp_path / "system.txt"],
        ["--prompt-style", "chat", "--system-prompt", "8;8"],
        ["--few-shot", shots],
        ["--prompt-style", "chat", "--few-shot", shots],
    ]
    rows = [search("--policy", chatting, *way, *BEST, out=f"{i}.jsonl") for i, way in enumerate(ways)]
    assert len({str([row["completions"] for row in each]) for each in rows}) == len(ways)
    assert all([row["problem"] for row in each] == [row["problem"] for row in rows[0]] for each in rows)


def test_plain_is_the_default(search, chatting):
    rows = search(*BEST, out="plain.jsonl")
    assert search(*BEST, "--prompt-style", "plain", "--step-delimiter", "\\n", out="typed.jsonl") == rows
    assert search(*BEST, "--policy", chatting, out="chatting.jsonl") == rows, "a template alone changes nothing"


@pytest.mark.parametrize("delimiter", ["=", "\\n\\n", "1="])
def test_step_delimiter(search, delimiter):
    """As typed in a shell, a line's end is a backslash and an n."""
    plain = search("--with-tree", out="plain.jsonl")
    changed = search("--with-tree", "--step-delimiter", delimiter, out="changed.jsonl")
    steps = [node["text"] for row in changed for node in row["tree"] if node["finish"] == "step"]
    assert all(step.endswith(delimiter.replace("\\n", "\n")) or delimiter == "=" for step in steps)
    assert changed != plain


@pytest.mark.parametrize("style", ["steps", "boxed"])
def test_styles_that_end_at_a_box(ttc, search, models, tmp_path, style):
    policy = boxing_policy(tmp_path / "policy")
    arguments = ["--policy", policy, "--verifier", "oracle", "--budget", "32"]
    plain = search(*arguments, *BEST, out="plain.jsonl", verifier=None)
    boxed = search(*arguments, *BEST, "--prompt-style", style, out="boxed.jsonl", verifier=None)
    assert {finish for row in plain for finish in row["finishes"]} == {"eos", "length"}
    assert {finish for row in boxed for finish in row["finishes"]} == {"eos", "boxed", "length"}
    other = search(*arguments, *BEST, "--prompt-style", "boxed", "--system-prompt", "1", out="o.jsonl", verifier=None)
    assert other != boxed


def test_what_a_prompt_cannot_be(ttc, models, chatting, tmp_path):
    def refused(*arguments: object, parts: tuple[str, ...]) -> None:
        assert_refused(ttc(*small_search(models, tmp_path / "x"), *arguments), *parts)
        assert not (tmp_path / "x").exists()

    refused("--prompt-style", "loud", parts=("prompt_style must be one of", "'loud'"))
    refused("--prompt-style", "chat", parts=("'chat' needs a chat template",))
    refused("--prompt-style", "boxed", parts=("no token", "'}'"))
    refused("--few-shot", "nowhere", parts=("'nowhere'",))
    refused("--step-delimiter", "", parts=("1 to 64 characters, got ''",))
    refused("--step-delimiter", "x", parts=("'x'",))
    refused("--system-prompt", "1" * 1100, parts=("the prompt has", "holds 1024"))
    loops = shutil.copytree(chatting, tmp_path / "loops")
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (loops / "chat_template.jinja").write_text(endless)
    refused("--policy", loops, "--prompt-style", "chat", parts=("chat_template.jinja was stopped",))


def test_prm_formats(search, models, judges, tmp_path):
    """Detected, named, and changed by a file of one's own."""
    home = search(*BEST, out="home.jsonl")
    detected = search(*BEST, "--prm", judges["qwen-prm"], out="qwen.jsonl")
    named = search(*BEST, "--prm", judges["versaprm"], "--prm-spec", "versaprm", out="versaprm.jsonl")
    (tmp_path / "mine.yaml").write_text("base: versaprm\nhead: {kind: lm-rows, rows: [12, 10], good: 0}\n")
    mine = search(*BEST, "--prm", judges["versaprm"], "--prm-spec", tmp_path / "mine.yaml", out="mine.jsonl")
    scores = [[row["scores"] for row in rows] for rows in (home, detected, named, mine)]
    assert all(one != other for i, one in enumerate(scores) for other in scores[:i])
    good, bad = ([score for row in rows for steps in row["scores"] for score in steps] for rows in (named, mine))
    assert good == pytest.approx([1 - score for score in bad], abs=1e-5)


def test_orm(search, judges):
    orm = ["--verifier", "orm", "--orm", judges["qwen-rm"]]
    rows = search(*BEST, *orm, out="orm.jsonl", verifier=None)
    ended = [len(s) for row in rows for s, f in zip(row["scores"], row["finishes"], strict=True) if f == "eos"]
    assert set(ended) <= {0, 1}
    assert 1 in ended
    typed = search(*BEST, *orm, "--orm-spec", "qwen-rm", out="typed.jsonl", verifier=None)
    assert typed == rows
    prm = search(*BEST, out="prm.jsonl")
    assert [row["scores"] for row in prm] != [row["scores"] for row in rows]
    adaptive = search("--strategy", "adaptive", *orm, out="adaptive.jsonl", verifier=None)
    assert {len(scores) for row in adaptive for scores in row["scores"]} == {0, 1}


def test_formats_that_do_not_fit(ttc, models, judges, tmp_path):
    def refused(*arguments: object, parts: tuple[str, ...], verifier: str | None = "prm") -> None:
        assert_refused(ttc(*small_search(models, tmp_path / "x", verifier), *arguments), *parts)
        assert not (tmp_path / "x").exists()

    refused("--prm", judges["versaprm"], parts=("not a step verifier by itself", "rlhflow", "versaprm"))
    refused("--prm-spec", "nothing", parts=("'nothing' is neither a file nor one of", "qwen-prm"))
    refused("--prm-spec", "qwen-rm", parts=("judges answers",))
    refused("--prm-spec", "trl", "--strategy", "majority", parts=("--prm-spec has no effect",), verifier=None)
    refused("--prm-spec", "trl", "--verifier", "oracle", parts=("--prm-spec has no effect",), verifier=None)
    refused("--orm", judges["qwen-rm"], parts=("--orm has no effect",), verifier=None)
    refused("--verifier", "orm", *BEST, parts=("needs --orm",), verifier=None)
    refused("--verifier", "orm", "--orm", judges["qwen-rm"], "--strategy", "beam", parts=("best-of-n",), verifier=None)
    not_an_orm = ("--verifier", "orm", "--orm", judges["qwen-prm"])
    refused(*not_an_orm, *BEST, parts=("not a verifier of answers",), verifier=None)


def test_a_run_goes_on_with_the_same_spec_only(search, ttc, models, judges, tmp_path):
    arguments = [*BEST, "--prm", judges["versaprm"], "--prm-spec"]
    rows = search(*arguments, "versaprm", out="a.jsonl")
    assert search(*arguments, "versaprm", out="a.jsonl") == rows
    (tmp_path / "mine.yaml").write_text("base: versaprm\nstep: 'x {step}'\n")
    outcome = ttc(*small_search(models, tmp_path / "a.jsonl"), *arguments, tmp_path / "mine.yaml")
    assert_refused(outcome, "another configuration")
    outcome = ttc(*small_search(models, tmp_path / "a.jsonl"), *arguments, "versaprm", "--system-prompt", "1")
    assert_refused(outcome, "another configuration")
