"""Verifiers with a format of their own, in an engine."""

from __future__ import annotations

import shutil

import pytest

from engine import BeamSearch, BestOfN, Engine, Lookahead, Majority
from engine.prompts import ChatTemplate
from engine.verifiers.loading import load_verifier_model
from tests.runtime.builders import PROBLEMS, Folders, assert_idle, fingerprint, folders
from tests.verifiers.builders import FORMATS, MUST_BE_NAMED, ORMS, Reference, make
from tests.verifiers.tokenizers import CHATML

__all__ = ["folders"]
OPTIONS = {"max_tokens": 24, "seed": 3}


def load(folders: Folders, folder, name: str, **options) -> Engine:
    part = "orm" if name in ORMS else "prm"
    spec = {f"{part}_spec": name} if name in MUST_BE_NAMED else {}
    return Engine.load(folders.policy, **{part: folder}, **spec, num_blocks=512, **options)


def idle(engine: Engine) -> None:
    assert_idle(*(model.runner for model in (engine.policy, engine.prm, engine.orm) if model is not None))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ORMS])
@pytest.mark.parametrize("strategy", [BeamSearch(width=2), Lookahead(width=2, lookahead=1)], ids=lambda s: s.name)
def test_a_beam_search(folders, tmp_path, name, strategy):
    """Forks, prunes and look-ahead over many problems at once: the scores are those of each answer alone."""
    folder = make(tmp_path / name, name)
    engine, theirs = load(folders, folder, name), Reference(folder, name)
    results = engine.search(PROBLEMS, strategy, 4, **OPTIONS)
    idle(engine)
    num_checked = 0
    for result in results:
        assert result.ledger.tokens["verified"] > 0
        for candidate in result.candidates:
            if candidate.finish != "eos" or strategy.lookahead:
                continue
            path = result.tree.path(next(i for i, n in enumerate(result.tree.nodes) if n.address == candidate.address))
            texts = [result.tree.nodes[i].step_text for i in path[1 : len(candidate.scores) + 1]]
            if texts and all(text.strip() for text in texts):
                is_verbatim = name.startswith("trl")
                prompt = result.problem.prompt
                want = theirs.scores(prompt if is_verbatim else prompt.strip(), texts)
                assert list(candidate.scores) == pytest.approx(want, abs=1e-4)
                num_checked += 1
    assert num_checked or strategy.lookahead
    again = [fingerprint(engine.search([problem], strategy, 4, **OPTIONS)[0]) for problem in PROBLEMS]
    assert again == [fingerprint(result) for result in results]


@pytest.mark.parametrize("name", ORMS)
def test_an_orm_scores_whole_answers(folders, tmp_path, name):
    folder = make(tmp_path / name, name)
    engine, theirs = load(folders, folder, name), Reference(folder, name)
    results = engine.search(PROBLEMS, BestOfN(), 6, verifier="orm", **OPTIONS)
    idle(engine)
    num_checked = 0
    for result in results:
        for candidate in result.candidates:
            assert len(candidate.scores) == (candidate.finish == "eos" and candidate.text.strip() != "")
            if candidate.scores:
                want = theirs.scores(result.problem.prompt.strip(), [candidate.text])
                assert list(candidate.scores) == pytest.approx(want, abs=1e-4)
                num_checked += 1
    assert num_checked > 4
    for strategy in (BeamSearch(width=2), Lookahead(width=2)):
        with pytest.raises(ValueError, match=f"'{strategy.name}' scores steps, the verifier judges whole answers"):
            engine.search(PROBLEMS, strategy, 8, verifier="orm")
    with pytest.raises(ValueError, match="no PRM is loaded"):
        engine.search(PROBLEMS, BestOfN(), 2)


def test_a_small_pool(folders, tmp_path):
    """Verifier branches that give way are computed again, and the scores stay."""
    folder = make(tmp_path / "qwen-prm", "qwen-prm")
    options = {"strategy": BeamSearch(width=2), "budget": 8, "max_tokens": 60, "seed": 3}
    engine = load(folders, folder, "qwen-prm")
    want = [fingerprint(result) for result in engine.search(PROBLEMS, **options)]
    spec = engine.specs["prm"]
    num_blocks = len(engine.resolve_verifier("prm").opening(PROBLEMS[0])) // 16 + 8
    small = Engine(engine.policy, prm=load_verifier_model(folder, spec, num_blocks=num_blocks), prm_spec=spec)
    got = small.search(PROBLEMS, **options)
    assert [fingerprint(result) for result in got] == want
    assert sum(result.ledger.tokens["recomputed"] for result in got) > 0
    idle(small)


def test_a_step_over_the_verifiers_maximum_leaves_the_answer_out(folders, tmp_path):
    folder = make(tmp_path / "skywork", "skywork", context=32)
    results = load(folders, folder, "skywork").search(PROBLEMS[3:4], BestOfN(), 12, max_tokens=60, seed=3)
    (result,) = results
    assert {candidate.finish for candidate in result.candidates} >= {"eos", "error"}
    assert result.num_errors == sum(candidate.finish == "error" for candidate in result.candidates)
    roomy = load(folders, make(tmp_path / "roomy", "skywork"), "skywork")
    (want,) = roomy.search(PROBLEMS[3:4], BestOfN(), 12, max_tokens=60, seed=3)
    assert want.num_errors == 0
    pairs = zip(result.candidates, want.candidates, strict=True)
    assert all(one.scores == pytest.approx(other.scores, abs=1e-5) for one, other in pairs if one.finish != "error")


def test_specs_that_have_no_effect(folders):
    for part in ("prm", "orm"):
        with pytest.raises(ValueError, match=f"{part}_spec 'skywork' has no effect without {part}"):
            Engine.load(folders.policy, **{f"{part}_spec": "skywork"}, num_blocks=64)


def test_home_is_detected_and_unchanged(folders):
    engine = Engine.load(folders.policy, prm=folders.prm, num_blocks=256)
    assert engine.specs["prm"].name == "home"
    plain = Engine(engine.policy, prm=engine.prm)
    results = [each.search(PROBLEMS, BeamSearch(width=2), 4, **OPTIONS) for each in (engine, plain)]
    assert [fingerprint(result) for result in results[0]] == [fingerprint(result) for result in results[1]]


def test_a_shared_prompt_is_computed_once(folders, tmp_path):
    """Worked examples and system prompt: in the KV cache once, for all problems of a run."""
    shots = tmp_path / "shots.txt"
    shots.write_text("b4?1?\n15\n" * 20)  # 180 tokens, one per character
    engine = Engine.load(folders.policy, few_shot=shots, num_blocks=256)
    results = engine.search(PROBLEMS, Majority(), 2, **OPTIONS)
    prefilled = [result.ledger.tokens["prefilled"] for result in results]
    whole = [len(engine.prompt_ids(problem.prompt)) for problem in PROBLEMS]
    assert min(whole) > 180
    assert sum(prefilled) <= sum(whole) - 4 * 176, "all but the first find eleven blocks of it"
    without = Engine.load(folders.policy, num_blocks=256).search(PROBLEMS, Majority(), 2, **OPTIONS)
    assert [fingerprint(result) for result in without] != [fingerprint(result) for result in results]


def test_a_chat_reaches_the_policy_and_not_the_verifier(folders, tmp_path):
    engine = Engine.load(folders.policy, prm=folders.prm, num_blocks=256)
    tokens = ChatTemplate(CHATML).render([{"role": "user", "content": "?3?5?=a"}], add_generation_prompt=True)
    chatting = shutil.copytree(folders.policy, tmp_path / "chat")
    (chatting / "chat_template.jinja").write_text(CHATML)
    chat = Engine.load(chatting, prm=folders.prm, num_blocks=256, prompt_style="chat")
    assert chat.prompt_ids("?3?5?=a\n") == engine.policy.encode(tokens)
    (result,) = chat.search(["?3?5?=a"], BestOfN(), 4, **OPTIONS)
    assert result.problem.prompt == "?3?5?=a\n"
    branch_ids = chat.resolve_verifier("prm").opening(result.problem)
    assert branch_ids == engine.policy.encode("?3?5?=a\n")
