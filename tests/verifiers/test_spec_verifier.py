"""What the formats share: seams that change ids, texts that are too long, checkpoints that do not fit."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.accounting import Ledger
from engine.verifiers.detect import find_spec, trunk_architecture
from engine.verifiers.layouts import num_common
from engine.verifiers.loading import build_verifier, load_verifier_model
from engine.verifiers.spec import parse_spec
from tests.runtime.builders import NAN, assert_idle
from tests.verifiers.builders import as_steps, load, make, open_branch, random_steps, run, whole

ROWS = {"kind": "lm-rows", "rows": ["+", "-"], "good": 0}


@pytest.fixture(scope="module")
def rlhflow(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "rlhflow", "rlhflow")


@pytest.fixture(scope="module")
def skywork(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "skywork", "skywork")


def build(folder, raw: dict, **options):
    """A verifier by a user's spec."""
    spec = parse_spec(raw, "mine")
    llm = load_verifier_model(folder, spec, num_blocks=512, **options)
    llm.runner.pool.k.fill_(NAN)
    llm.runner.pool.v.fill_(NAN)
    return build_verifier(llm, spec, llm)


@torch.inference_mode()
def last_score(folder, ids: list[int], verifier) -> float:
    """Theirs, at the last token of a text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [verifier.llm.tokenizer.token_to_id(sign) for sign in "+-"]
    return model(torch.tensor([ids])).logits[0, -1, rows].softmax(-1)[0].item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_seam_that_merges(rlhflow, seed):
    """ "\\n" after a step and "\\n" before the next are one token: each append changes the id before it."""
    raw = {"layout": "text", "tag": "\n", "between": "\n", "score_at": "tag", "problem": "{problem} ", "head": ROWS}
    verifier = build(rlhflow, raw)
    texts, ledger = random_steps(random.Random(seed), 4, has_lines=False), Ledger()
    ids = [verifier.layout.encode("What is it?", texts[: k + 1])[0] for k in range(4)]
    assert all(num_common(ids[k], ids[k + 1]) < len(ids[k]) for k in range(3)), "no seam, no test"
    head = open_branch(verifier, "What is it?", ledger)
    for text, want in zip(texts, ids, strict=True):
        fork, other = head.fork(2)
        head.close()
        scores = run(verifier, verifier.score([other, fork], [as_steps(["So 12.", "Or 34."]), as_steps([text])]))
        assert fork.live.token_ids == fork.ids == want
        assert scores[1] == [pytest.approx(last_score(rlhflow, want, verifier), abs=1e-4)]
        other.close()
        head = fork
    head.close()
    assert_idle(verifier.llm.runner)


@pytest.mark.parametrize("shares_steps", [True, False])
def test_branches_that_say_the_same(rlhflow, shares_steps):
    """They are read once or each apart, with the same scores; where they part, each goes its own way."""
    spec = parse_spec({"layout": "text", "tag": " +", "score_at": "tag", "head": ROWS}, "mine")
    llm = load_verifier_model(rlhflow, spec, num_blocks=512)
    verifier, ledger = build_verifier(llm, spec, llm, shares_steps), Ledger()
    head = open_branch(verifier, "What is it?", ledger)
    forks, num_prompt = head.fork(3), ledger.tokens["verified"]
    said = [["So 12.", "Or 34."], ["So 12.", "Or 34."], ["So 12.", "No 5."]]
    scores = run(verifier, verifier.score(forks, [as_steps(texts) for texts in said]))
    read = [len(fork.ids) - len(head.ids) for fork in forks]
    step = len(verifier.layout.encode("What is it?", said[0][:1])[0]) - len(head.ids)
    apart = len(head.ids) + sum(read)
    assert ledger.tokens["verified"] - num_prompt == (apart - read[1] - step if shares_steps else apart)
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[0][0] == pytest.approx(scores[2][0], abs=1e-6)
    for fork, texts, found in zip(forks, said, scores, strict=True):
        ids = verifier.layout.encode("What is it?", texts)[0]
        assert found[1] == pytest.approx(last_score(rlhflow, ids, verifier), abs=1e-4)
        fork.close()
    head.close()
    assert_idle(llm.runner)


def test_a_step_that_merges_with_the_problem(rlhflow):
    raw = {"layout": "text", "tag": " +", "score_at": "tag", "head": ROWS}
    verifier = build(rlhflow, raw)
    problem, text = "How much is it, 12", "34 x."
    (want, _), opening = verifier.layout.encode(problem, [text]), verifier.layout.opening(problem)
    assert num_common(want, opening) < len(opening), "no seam, no test"
    branches = [open_branch(verifier, problem) for _ in range(2)]
    for branch in branches:  # the second finds all of the first's tokens in the cache
        ((score,),) = run(verifier, verifier.score([branch], [as_steps([text])]))
        assert branch.live.token_ids == want
        assert score == pytest.approx(last_score(rlhflow, want, verifier), abs=1e-4)
        branch.close()
    assert_idle(verifier.llm.runner)


def test_a_step_that_names_the_tag_has_one_score(tmp_path):
    """What a policy writes may hold the tag, or a character that no text should: one score per step all the same."""
    verifier = load(make(tmp_path / "qwen-prm", "qwen-prm"), "qwen-prm")
    texts = ["so <extra_0> then\n\n", "\ue000\ue000\n\n", "<|im_end|>{{ 7 * 7 }}\n\n", "\n\n"]
    ids, places = verifier.layout.encode("What\ue000 is <extra_0>?", texts)
    tag = verifier.llm.tokenizer.token_to_id("<extra_0>")
    assert [ids[place] for place in places] == [tag] * 4
    assert ids.count(tag) == 6
    branch = open_branch(verifier, "What\ue000 is <extra_0>?")
    (scores,) = run(verifier, verifier.score([branch], [as_steps(texts)]))
    assert len(scores) == 4
    assert scores == pytest.approx([whole(verifier, "What\ue000 is <extra_0>?", texts[: k + 1])[-1] for k in range(4)])


# -- limits ------------------------------------------------------------------------------------


def limited(folder, overlong: str, max_tokens: int | None):
    verifier = load(folder, "skywork")
    verifier.spec = replace(verifier.spec, overlong=overlong)
    verifier.max_tokens = max_tokens or verifier.max_tokens
    return verifier


@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_text_over_the_maximum(skywork, is_at_once):
    texts = random_steps(random.Random(0), 4)
    long = whole(load(skywork, "skywork"), "What?", texts)
    lengths = [len(load(skywork, "skywork").layout.encode("What?", texts[: k + 1])[0]) for k in range(4)]

    def score(overlong: str, max_tokens: int) -> list[float]:
        verifier = limited(skywork, overlong, max_tokens)
        branch = open_branch(verifier, "What?")
        if is_at_once:
            (scores,) = run(verifier, verifier.score([branch], [as_steps(texts)]))
        else:
            scores = [run(verifier, verifier.score([branch], [as_steps([text])]))[0][0] for text in texts]
        branch.close()
        assert_idle(verifier.llm.runner)
        return scores

    for limit in (lengths[1], lengths[2] - 1):
        flagged = score("flag", limit)
        assert flagged[:2] == pytest.approx(long[:2], abs=1e-5)
        assert [math.isnan(value) for value in flagged] == [False, False, True, True]
        assert score("last", limit) == pytest.approx([*long[:2], long[1], long[1]], abs=1e-5)
    assert score("error", lengths[3]) == pytest.approx(long, abs=1e-5)
    with pytest.raises(
        ValueError, match=rf"tokens of problem 'p' and its steps are over the maximum .*{lengths[3] - 1}"
    ):
        score("error", lengths[3] - 1)


def test_the_context_is_a_maximum(tmp_path):
    verifier = load(make(tmp_path / "skywork", "skywork", context=64), "skywork")
    assert verifier.max_tokens == 64
    branch = open_branch(verifier, "What?")
    (scores,) = run(verifier, verifier.score([branch], [as_steps(random_steps(random.Random(0), 5))]))
    assert len(scores) == 5
    assert math.isnan(scores[-1])
    with pytest.raises(ValueError, match="the context of the model holds 64"):
        open_branch(verifier, "What? " * 100)


def test_saturated_scores_and_nan(skywork):
    verifier = load(skywork, "skywork")
    head = verifier.llm.runner.parts.score_head
    head.weight.zero_()
    for bias, want in ((200.0, 1.0), (-200.0, 0.0)):
        head.bias.fill_(bias)
        assert whole(verifier, "What?", ["a\n\n", "b\n\n"]) == [want, want]
    head.bias.fill_(NAN)
    assert all(map(math.isnan, whole(verifier, "What?", ["a\n\n", "b\n\n"])))


# -- what a checkpoint must have ---------------------------------------------------------------


def test_detection(tmp_path, rlhflow, skywork):
    assert find_spec(skywork).name == "skywork"
    with pytest.raises(ValueError, match=r"several formats.*'LlamaForCausalLM'.*math-shepherd, rlhflow, versaprm"):
        find_spec(rlhflow)
    with pytest.raises(
        ValueError, match=r"no known format has the architecture 'LlamaForCausalLM'.*orm_spec: home-orm, qwen-rm"
    ):
        find_spec(rlhflow, judges="answers")
    with pytest.raises(ValueError, match="'qwen-rm' judges answers, here one of steps is meant"):
        find_spec(rlhflow, "qwen-rm")
    assert find_spec(rlhflow, "versaprm").name == "versaprm"
    assert trunk_architecture(rlhflow) is None


@pytest.mark.parametrize(
    ("labels", "name"), [({"0": "only"}, "home"), ({"0": "bad", "1": "good"}, "home"), ({"0": "no", "1": "yes"}, None)]
)
def test_labels_tell_our_own_classifiers(tmp_path, labels, name):
    folder = make(tmp_path / "trl", "trl")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    if name is None:
        with pytest.raises(ValueError, match="name one with prm_spec: trl, trl-paragraphs"):
            find_spec(folder)
    else:
        assert find_spec(folder).name == name


@pytest.mark.parametrize("architecture", ["Qwen2ForProcessRewardModel", "LlamaForProcessRewardModel"])
def test_the_trunk_of_another_head(tmp_path, architecture):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert trunk_architecture(tmp_path) == architecture.replace("ForProcessRewardModel", "ForCausalLM")


def test_a_tokenizer_that_is_not_the_formats(rlhflow):
    with pytest.raises(ValueError, match=r"'versaprm' reads token 23535, in this tokenizer the tag .* ends in token"):
        load(rlhflow, "versaprm")


def test_a_checkpoint_without_the_head(skywork, tmp_path):
    folder = shutil.copytree(skywork, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"reads a .*ForTokenClassification, got LlamaForCausalLM"):
        build(folder, {"base": "trl"})
    with pytest.raises(ValueError, match=r"lacks tensor 'other.weight'"):
        build(folder, {"base": "skywork", "head": {"kind": "linear", "tensor": "other", "num_labels": 1}})
    with pytest.raises(ValueError, match=r"'v_head.summary.weight' has shape \(1, 32\), the config says \(2, 32\)"):
        build(folder, {"base": "skywork", "head": {"kind": "linear", "tensor": "v_head.summary", "num_labels": 2}})
    with pytest.raises(ValueError, match=r"within 0\.\.\d+, got \[1, 99999\]"):
        build(folder, {"base": "versaprm", "tag_ids": [], "head": {"kind": "lm-rows", "rows": [1, 99999]}})


def test_a_checkpoint_without_a_template_or_bos(skywork, rlhflow, tmp_path):
    folder = shutil.copytree(rlhflow, tmp_path / "copy")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="'rlhflow' needs a chat template, the checkpoint has none"):
        load(folder, "rlhflow")
    folder = shutil.copytree(skywork, tmp_path / "other")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"'skywork' needs a bos_token, tokenizer_config.json names none"):
        load(folder, "skywork")


def test_a_template_that_drops_what_is_said(rlhflow, tmp_path):
    folder = shutil.copytree(rlhflow, tmp_path / "copy")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ValueError, match="does not keep what an assistant says"):
        open_branch(load(folder, "rlhflow"), "What?")


def test_a_spec_of_a_users_own(rlhflow):
    """Every field that a spec overrides changes the scores."""
    base = {"base": "rlhflow"}
    texts = random_steps(random.Random(0), 3)
    plain = whole(build(rlhflow, base), "What?", texts)
    for change in (
        {"system": "Be strict."},
        {"turns": "joined"},
        {"problem": "Q: {problem} "},
        {"step": "> {step}"},
        {"tag": "-"},
        {"score_at": "tag"},
        {"head": {**ROWS, "good": 1}},
        {"strip_steps": False, "step": "{step}."},
        {"special_tokens": True},
    ):
        assert whole(build(rlhflow, base | change), "What?", texts) != pytest.approx(plain, abs=1e-6), change
    text = {"layout": "text", "tag": "\n", "score_at": "tag", "head": ROWS, "problem": "{problem} "}
    plain = whole(build(rlhflow, text), "What? ", texts)
    assert whole(build(rlhflow, text | {"between": "; "}), "What? ", texts) != pytest.approx(plain, abs=1e-6)
    assert whole(build(rlhflow, text | {"strip_problem": False}), "What? ", texts) != pytest.approx(plain, abs=1e-6)
    pieces = {"layout": "pieces", "tag": " \n+", "score_at": "tag", "head": ROWS}
    plain = whole(build(rlhflow, pieces), "What?", ["a\nb\n\n"])
    for change in ({"has_bos": True}, {"split_lines": True}, {"tag_ids_kept": "last"}):
        assert whole(build(rlhflow, pieces | change), "What?", ["a\nb\n\n"]) != pytest.approx(plain, abs=1e-6), change
