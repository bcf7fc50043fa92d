"""Specs as files: what may stand in one, and the sentence for what may not."""

from __future__ import annotations

import pytest

from engine.verifiers.spec import built_in_names, built_in_specs, load_spec, parse_spec
from tests.verifiers.builders import FORMATS

PLAIN = {"layout": "text", "tag": "\n", "score_at": "tag", "head": {"kind": "lm-rows", "rows": [1, 2]}}


def test_all_formats_are_built_in():
    assert set(built_in_names()) == {"home", "home-orm", *FORMATS}
    assert [spec.name for spec in built_in_specs()] == built_in_names()


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: versaprm-qwen\ntag_ids: [3]\nmax_tokens: 99\n")
    spec = load_spec(path)
    built_in = load_spec("versaprm")
    assert (spec.name, spec.tag_ids, spec.max_tokens) == ("mine", (3,), 99)
    assert (spec.tag, spec.head, spec.problem) == (built_in.tag, built_in.head, built_in.problem)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "must be a mapping"),
        ({}, "needs the field 'layout'"),
        (PLAIN | {"layout": "prose"}, "layout must be one of tokens, text, pieces, chat, got 'prose'"),
        (PLAIN | {"score_at": "start"}, "score_at must be one of .* got 'start'"),
        (PLAIN | {"colour": 1}, "has no field 'colour'; it has layout"),
        (PLAIN | {"name": "x"}, "has no field 'name'"),
        (PLAIN | {"tag": 3}, "tag must be str, got 3"),
        (PLAIN | {"tag": ""}, "score_at 'tag' needs a tag"),
        (PLAIN | {"tag_ids": ["x"]}, "tag_ids must be a list of int, got"),
        (PLAIN | {"strip_steps": "no"}, "strip_steps must be bool, got 'no'"),
        (PLAIN | {"score_at": "last"}, "score_at 'last' is for answers"),
        (PLAIN | {"system": "x"}, "system has no effect with layout 'text', got 'x'"),
        (PLAIN | {"split_lines": True}, "split_lines has no effect with layout 'text'"),
        (PLAIN | {"step": "x"}, "step must hold {step}, got 'x'"),
        (PLAIN | {"problem": ""}, "problem must hold {problem}, got ''"),
        (PLAIN | {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        (PLAIN | {"max_tokens": True}, "max_tokens must be int, got True"),
        (PLAIN | {"base": "other"}, "base must be one of .* got 'other'"),
        (PLAIN | {"layout": "pieces", "score_at": "before-tag"}, "'before-tag' is not for layout 'pieces'"),
        (PLAIN | {"head": "score"}, "head must be dict, got 'score'"),
        (PLAIN | {"head": {}}, "head needs the field 'kind'"),
        (PLAIN | {"head": {"kind": "cubic"}}, "head kind must be one of .* got 'cubic'"),
        (PLAIN | {"head": {"kind": "lm-rows"}}, "'lm-rows' needs rows"),
        (PLAIN | {"head": {"kind": "mlp", "tensor": "s"}}, "'mlp' needs num_labels"),
        (PLAIN | {"head": {"kind": "lm-rows", "rows": [1, 2], "good": 2}}, r"good must be within 0\.\.1, got 2"),
        (PLAIN | {"head": {"kind": "lm-rows", "rows": [1.5]}}, "rows must be a list of int or str"),
        (PLAIN | {"detect": [{"tensor": "x"}]}, "detect needs the field 'architecture'"),
        ({"layout": "tokens", "score_at": "tag", "head": {"kind": "classification"}}, "needs a tag"),
        ({"base": "home", "tag": "x"}, "tag has no effect with layout 'tokens'"),
        ({"base": "home-orm", "tag": "x"}, "tag has no effect with layout 'tokens'"),
    ],
)
def test_a_spec_that_says_nothing_sensible(raw, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_spec(raw, "mine")
    assert "\n" not in str(caught.value)
    assert "'mine'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"layout: [", "not valid YAML"),
        (b"\xff\xfe", "not valid YAML"),
        (b"- a\n", "must be a mapping"),
        (b"!!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"a: " + b"[" * 3000, "not valid YAML"),
        (b"#" * 70_000, "65536 at most"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="'math-shep' is neither a file nor one of home, home-orm, math-shepherd"):
        load_spec("math-shep")
