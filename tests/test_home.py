"""The shipped models: transformers loads them and says the same, and they are what the task needs."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from engine import BestOfN, ComputeOptimal, Engine, Majority, Sampling
from engine.model import HOME
from engine.tasks import get_task, take_problems
from engine.types import GREEDY


@pytest.fixture(scope="module")
def engine():
    return Engine.load("home")


@pytest.fixture(scope="module")
def problems():
    return take_problems(get_task("walks"), "validation", 60)


@torch.no_grad()
def test_policy_logits_equal_those_of_transformers(engine, problems):
    model = AutoModelForCausalLM.from_pretrained(HOME / "policy").eval()
    llm = engine.policy
    for problem in problems[:4]:
        root = llm.open(problem.prompt)
        kept, *pruned = root.fork(4)
        llm.generate([kept, *pruned], stop=["\n"], max_tokens=64, sampling=Sampling(1.0), seed=1)
        for branch in pruned:
            branch.close()
        grown = kept.fork(3)
        llm.generate(grown, stop=["\n"], max_tokens=64, sampling=Sampling(1.0), seed=2)
        for branch in (root, kept, *grown):
            expected = model(torch.tensor([branch.token_ids])).logits[0, -1]
            torch.testing.assert_close(llm.next_logits([branch])[0], expected, atol=1e-4, rtol=0)
        for branch in (root, kept, *grown):
            branch.close()
    llm.runner.tree.check_integrity()


@torch.no_grad()
def test_prm_scores_equal_those_of_transformers(engine, problems):
    model = AutoModelForTokenClassification.from_pretrained(HOME / "prm").eval()
    for result in engine.search(problems[:4], BestOfN(), 4):
        for candidate in result.candidates:
            ids = engine.prm.encode(result.problem.prompt)
            ends = []
            for step in candidate.text.splitlines(keepends=True):
                ids += engine.prm.encode(step, is_start=False)
                ends.append(len(ids) - 1)
            if candidate.finish == "eos":
                ids.append(engine.policy.config.eos_token_ids[0])
                ends[-1] = len(ids) - 1
            good = model(torch.tensor([ids])).logits[0].softmax(-1)[ends, 1]
            torch.testing.assert_close(torch.tensor(candidate.scores), good, atol=1e-4, rtol=0)


def test_one_answer_often_fails_where_some_of_sixteen_succeed(engine, problems):
    sampled = engine.search(problems, Majority(), 16)
    right = [[c.answer == r.problem.answer for c in r.candidates] for r in sampled]
    single = sum(map(sum, right)) / (16 * len(problems))
    assert 0.1 < single < 0.45
    assert sum(map(any, right)) / len(problems) > single + 0.25
    greedy = engine.search(problems, Majority(), 1, sampling=GREEDY)
    assert single < sum(result.correct for result in greedy) / len(problems) < 0.9


def test_checkpoints_are_plain_and_small():
    files = [path for path in HOME.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert sum(path.stat().st_size for path in files) <= 40e6
    for part in ("policy", "prm", "trunk_head"):
        assert (HOME / part / "README.md").read_text().startswith("# ")
    assert json.loads((HOME / "policy" / "config.json").read_text())["max_position_embeddings"] >= 1024


def test_the_shipped_calibration_is_of_the_shipped_models(engine):
    strategy = ComputeOptimal(HOME / "calibration.json")
    assert strategy.checked(engine.conditions(strategy)) is strategy
