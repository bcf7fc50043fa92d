"""Revisions with models: what a reviser and an ORM are given, what is computed, and by whom."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from engine import BestOfN, ComputeOptimal, Engine, Majority, Problem, Revisions
from engine.accounting import Ledger
from engine.loading import home_part
from engine.runtime import Batcher
from engine.scheduler import Bins, Calibration, Cell, Predictor
from engine.types import GREEDY, Step
from engine.verifiers.orm import ORMVerifier
from engine.verifiers.prm import PRMVerifier
from tests.runtime.builders import PROBLEMS, assert_idle, fingerprint
from tests.tiny import tiny_policy, tiny_prm, tiny_trunk_head

OPTIONS = {"max_tokens": 24, "seed": 3}
STRATEGY = Revisions(parallel=2, context=2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("revisions")
    return {
        "policy": tiny_policy(folder / "policy"),
        "reviser": tiny_policy(folder / "reviser", seed=5),
        "prm": tiny_prm(folder / "prm"),
        "orm": tiny_prm(folder / "orm", seed=7, num_labels=2),
        "short_orm": tiny_prm(folder / "short_orm", seed=7, context=80),
        "trunk_head": tiny_trunk_head(folder / "trunk_head"),
        "short_reviser": tiny_policy(folder / "short_reviser", seed=5, context=128),
    }


@pytest.fixture(scope="module", autouse=True)
def labels(parts):
    """The ORM's labels are those that `ttc train orm` writes."""
    path = parts["orm"] / "config.json"
    names = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **names}))


def load(parts, *names: str, **options) -> Engine:
    folders = {name: parts[name] for name in names}
    return Engine.load(parts["policy"], **{"num_blocks": 512, **folders, **options})


def runners(engine: Engine) -> list:
    return [llm.runner for llm in (engine.policy, engine.prm, engine.orm, engine.reviser) if llm is not None]


@pytest.mark.parametrize("verifier", ["prm", "orm", "oracle"])
def test_a_search(parts, verifier):
    engine = load(parts, "prm", "orm", "reviser")
    results = engine.search(PROBLEMS, STRATEGY, 8, verifier=verifier, **OPTIONS)
    for result in results:
        assert [each.address[0] for each in result.candidates] == [0, 1] * 4
        assert [len(each.address) for each in result.candidates] == [1, 1, 2, 2, 3, 3, 4, 4]
        assert result.ledger.flops["generated"] > 0
    assert any(result.ledger.tokens["verified"] for result in results) == (verifier != "oracle")
    whole = [each for result in results for each in result.candidates if each.finish == "eos" and each.text.strip()]
    assert whole
    assert all(each.scores for each in whole)
    assert verifier != "orm" or all(len(each.scores) == 1 for each in whole)
    assert_idle(*runners(engine))


def greedy_chain(parts, num_attempts: int, context: int, max_tokens: int) -> list[list[int]]:
    """The attempts of one chain by transformers, which computes every context whole."""
    model = AutoModelForCausalLM.from_pretrained(parts["reviser"])
    engine = load(parts)
    prompt, end = engine.prompt_ids(PROBLEMS[0].prompt), engine.policy.config.eos_token_ids[0]
    attempts: list[list[int]] = []
    whole: list[list[int]] = []
    for _ in range(num_attempts):
        ids = [token for attempt in whole[-context:] for token in (*prompt, *attempt)] + prompt
        new: list[int] = []
        while len(new) < max_tokens and new[-1:] != [end]:
            logits = model(torch.tensor([ids + new])).logits[0, -1]
            new.append(int(logits.argmax()))
        attempts.append(new)
        if new[-1] == end:
            whole.append(new)
    return attempts


def sampled_tokens(engine: Engine, monkeypatch) -> list[list[int]]:
    """Fills with the token ids of every attempt, whole or not."""
    found: list[list[int]] = []
    split = engine._reviser.split

    def recorded(sampled):
        found.append(list(sampled.token_ids))
        return split(sampled)

    monkeypatch.setattr(engine._reviser, "split", recorded)
    return found


@pytest.mark.parametrize("context", [1, 2, 4])
def test_attempts_are_those_of_the_whole_context(parts, context, monkeypatch):
    """Greedy: going on with KV, and opening anew where the window slides, is what computing all of it is."""
    engine = load(parts, "reviser")
    found = sampled_tokens(engine, monkeypatch)
    strategy = Revisions(parallel=1, context=context, vote="majority")
    engine.search(PROBLEMS[:1], strategy, 6, sampling=GREEDY, max_tokens=40, seed=0)
    assert found == greedy_chain(parts, 6, context, 40)


def test_what_is_held_is_not_computed_again(parts, monkeypatch):
    engine = load(parts, "reviser")
    found = sampled_tokens(engine, monkeypatch)
    strategy = Revisions(parallel=1, context=8, vote="majority")
    (result,) = engine.search(PROBLEMS[3:4], strategy, 6, max_tokens=60, seed=1)
    ended = [each.finish == "eos" and each.text.strip() != "" for each in result.candidates]
    num_prompt = len(engine.prompt_ids(PROBLEMS[3].prompt))
    tokens = result.ledger.tokens
    assert any(ended)
    assert tokens["generated"] == sum(map(len, found))
    assert tokens["recomputed"] == sum(not each for each in ended[:-1])  # the prompt's last row is read again
    assert tokens["prefilled"] == num_prompt * (1 + sum(ended[:-1])), (
        "an attempt costs its prompt, and no attempt twice"
    )
    assert result.ledger.flops["generated"] > 0


def test_bills_are_of_the_model_that_runs(parts):
    engine = load(parts, "reviser", "prm")
    before = engine.policy.runner.num_ticks
    engine.search(PROBLEMS, STRATEGY, 4, **OPTIONS)
    assert engine.policy.runner.num_ticks == before, "the policy has no part in it"
    assert engine.reviser.runner.num_ticks > 0


def test_results_do_not_depend_on_what_else_runs(parts):
    engine = load(parts, "reviser", "orm")
    together = engine.search(PROBLEMS, STRATEGY, 8, verifier="orm", **OPTIONS)
    small = load(parts, "reviser", "orm", max_batch=2)
    alone = [small.search([problem], STRATEGY, 8, verifier="orm", **OPTIONS)[0] for problem in PROBLEMS[::-1]][::-1]
    assert [fingerprint(each) for each in together] == [fingerprint(each) for each in alone]
    few = load(parts, "reviser", "orm", num_blocks=24)
    assert [fingerprint(each) for each in few.search(PROBLEMS, STRATEGY, 8, verifier="orm", **OPTIONS)] == [
        fingerprint(each) for each in together
    ]
    assert_idle(*runners(few), *runners(small))


def test_a_model_with_a_short_context_drops_attempts_and_goes_on(parts):
    engine = load(parts, reviser=parts["short_reviser"])
    strategy = Revisions(parallel=1, context=4, vote="majority")
    long = Revisions(parallel=1, context=1, vote="majority")
    found = [engine.search(PROBLEMS[:3], each, 12, max_tokens=40, seed=2) for each in (strategy, long)]
    assert all(len(result.candidates) == 12 for results in found for result in results)
    tight = engine.search(PROBLEMS[:3], strategy, 12, max_tokens=1000, seed=2)  # nothing fits beside it
    assert all(len(result.candidates) == 12 for result in tight)
    assert_idle(*runners(engine))


def step(text: str, engine: Engine) -> Step:
    ids = (*engine.policy.encode(text, is_start=False), engine.policy.config.eos_token_ids[0])
    return Step(ids, text, "eos")


def run(engine: Engine, coroutine):
    ((_, value),) = Batcher().run([engine.policy, engine.orm], [coroutine], 1)
    if isinstance(value, Exception):
        raise value
    return value


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_the_orm_reads_an_answer_after_its_history(parts, first):
    """Opened with some attempts and scored on the way over others, against transformers on the whole text."""
    engine = load(parts, "orm")
    judge = engine.resolve_verifier("orm")
    assert isinstance(judge, ORMVerifier)
    attempts = [step(text, engine) for text in ("12+3=15\n15*4=60", "12+3=16", "9=9\n", "7")]
    problem = Problem("p", "?3?5?=a\n")

    async def scores():
        branch = await judge.open(problem, ledger=Ledger(), history=[(each,) for each in attempts[:first]])
        found = [(await judge.score([branch], [[each]]))[0][0] for each in attempts[first:]]
        branch.close()
        return found

    model = AutoModelForTokenClassification.from_pretrained(parts["orm"])
    prompt, expected = engine.prompt_ids(problem.prompt), []
    for number in range(first, 4):
        ids = [token for each in attempts[: number + 1] for token in (*prompt, *each.token_ids)]
        expected.append(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[1].item())
    assert run(engine, scores()) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(expected)
    assert_idle(*runners(engine))


def test_the_orm_leaves_old_attempts_out_where_its_context_ends(parts):
    engine = load(parts, orm=parts["short_orm"], orm_spec="home-orm")
    judge, problem = engine.resolve_verifier("orm"), Problem("p", "?3?5?=a\n")
    attempts = [step("12+3=15\n15*4=60", engine) for _ in range(5)]

    async def scores(history):
        branch = await judge.open(problem, ledger=Ledger(), history=[(each,) for each in history])
        score = (await judge.score([branch], [[attempts[0]]]))[0][0]
        branch.close()
        return score

    assert run(engine, scores(attempts)) == run(engine, scores(attempts[:2]))  # three of 24 tokens fit into 80
    assert run(engine, scores(attempts[:1])) != run(engine, scores(attempts[:2]))

    async def one_by_one():
        branch = await judge.open(problem, ledger=Ledger())
        found = [(await judge.score([branch], [[each]]))[0][0] for each in attempts]
        branch.close()
        return found[-1]

    assert run(engine, one_by_one()) == pytest.approx(run(engine, scores(attempts[:2])), abs=1e-6)
    assert_idle(*runners(engine))


def test_the_orm_is_told_from_the_prm_by_what_it_is_loaded_as(parts):
    engine = load(parts, prm=parts["orm"], orm=parts["orm"])
    assert type(engine.resolve_verifier("prm")) is PRMVerifier
    assert type(engine.resolve_verifier("orm")) is ORMVerifier
    results = engine.search(PROBLEMS[:2], BestOfN(), 4, verifier="orm", **OPTIONS)
    assert all(math.isfinite(each.agg_score) for result in results for each in result.candidates)


def test_the_policy_as_its_own_reviser_is_loaded_once(parts):
    engine = load(parts, "prm", "trunk_head", reviser=parts["policy"])
    assert engine.reviser is engine.policy
    (result,) = engine.search(PROBLEMS[:1], STRATEGY, 4, verifier="trunk", **OPTIONS)
    assert len(result.candidates) == 4
    other = load(parts, "prm", "trunk_head", "reviser")
    with pytest.raises(ValueError, match="'trunk' is a head on the policy's trunk, not on that of the reviser at"):
        other.search(PROBLEMS[:1], STRATEGY, 4, verifier="trunk", **OPTIONS)


def test_a_search_without_a_reviser_is_refused(parts):
    with pytest.raises(ValueError, match="'revisions' needs a reviser, got None"):
        load(parts, "prm").search(PROBLEMS[:1], STRATEGY, 4, **OPTIONS)


def test_conditions_name_the_reviser_and_the_orm(parts):
    engine, other = load(parts, "prm", "orm", "reviser"), load(parts, "prm", "orm", reviser=parts["policy"])
    assert engine.conditions(STRATEGY) != other.conditions(STRATEGY)
    assert engine.conditions(BestOfN()) == other.conditions(BestOfN())
    third = load(parts, "prm", orm=parts["prm"], orm_spec="home-orm")
    assert engine.conditions(BestOfN(), verifier="orm") != third.conditions(BestOfN(), verifier="orm")
    assert engine.conditions(BestOfN(), verifier="prm") == third.conditions(BestOfN(), verifier="prm")


def calibration(engine: Engine, is_reused: bool) -> Calibration:
    cells = [
        Cell(0, strategy, budget, right, 10, budget, 1, 1)
        for strategy, budget, right in (
            (Majority(), 2, 1),
            (Majority(), 8, 2),
            (Revisions(parallel=2), 8, 5),
            (Revisions(parallel=2), 10, 6),
        )
    ]
    predictor = Predictor("agreement", 2, is_reused)
    plain = Calibration({}, "x", predictor, Bins(()), (10,), (2, 8, 10), tuple(cells))
    conditions = engine.conditions(ComputeOptimal(plain), **OPTIONS)
    return Calibration(conditions, "x", predictor, Bins(()), (10,), (2, 8, 10), tuple(cells))


@pytest.mark.parametrize("is_reused", [True, False])
def test_compute_optimal_chooses_revisions_and_the_pilot_is_the_policys(parts, is_reused):
    engine = load(parts, "prm", "reviser")
    strategy = ComputeOptimal(calibration(engine, is_reused))
    budget = 8
    results = engine.search(PROBLEMS, strategy, budget, **OPTIONS)
    for result in results:
        assert "revisions:parallel=2" in result.plan
        assert len(result.candidates) == result.num_generations == budget
    if is_reused:
        pilots = engine.search(PROBLEMS, BestOfN(), 2, **OPTIONS)
        assert [each.candidates[:2] for each in results] == [each.candidates for each in pilots]
        assert {each.address[0] for each in results[0].candidates[2:]} == {2, 3}
    total = engine.search_batch(PROBLEMS, strategy, 8 * len(PROBLEMS), **OPTIONS)
    assert sum(each.num_generations for each in total) <= 8 * len(PROBLEMS)
    assert any("revisions" in each.plan for each in total)
    other = load(parts, "prm", reviser=parts["policy"])
    with pytest.warns(UserWarning, match="reviser was"):
        other.search(PROBLEMS[:1], strategy, budget, **OPTIONS)
    assert_idle(*runners(engine))


def test_the_shipped_parts_come_along_where_there_are_any():
    engine = Engine.load("home", num_blocks=64)
    assert (engine.reviser is None) == (home_part("reviser") is None)
    assert (engine.orm is None) == (home_part("orm") is None)
