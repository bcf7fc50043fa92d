"""Every format: equal to plain transformers on the ids of the format's own code, at once and step by step."""

from __future__ import annotations

import random

import pytest
import torch

from engine.accounting import Ledger
from engine.types import Step
from tests.runtime.builders import assert_idle
from tests.verifiers.builders import (
    FORMATS,
    ORMS,
    Reference,
    as_steps,
    load,
    make,
    open_branch,
    random_steps,
    run,
    whole,
)

PROBLEMS = ["What is 12 + 34?", "Let x = 2 y. Find x.", "ки é"]
STEP_FORMATS = [name for name in FORMATS if name not in ORMS]


@pytest.fixture(scope="module", params=[0, 1, 2])
def seed(request) -> int:
    return request.param


@pytest.fixture(scope="module", params=FORMATS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, name, seed):
    return make(tmp_path_factory.mktemp(name), name, seed)


@pytest.fixture(scope="module")
def first(tmp_path_factory, name):
    """One checkpoint per format."""
    return make(tmp_path_factory.mktemp(name), name)


def answers(seed: int, name: str) -> list[tuple[str, list[str]]]:
    """(problem, texts of the steps); of an ORM one text."""
    rng = random.Random(seed)
    texts = [(problem, random_steps(rng, rng.randint(1, 5))) for problem in PROBLEMS]
    return [(problem, ["".join(steps)] if name in ORMS else steps) for problem, steps in texts]


def test_scores_are_theirs(folder, name, seed):
    verifier, theirs = load(folder, name), Reference(folder, name)
    for problem, texts in answers(seed, name):
        want = theirs.scores(problem, texts)
        assert len(want) == len(texts)
        assert whole(verifier, problem, texts) == pytest.approx(want, abs=1e-4)
    assert_idle(verifier.llm.runner)


def test_bfloat16(first, name):
    verifier, theirs = load(first, name, "bfloat16"), Reference(first, name, torch.bfloat16)
    for problem, texts in answers(0, name):
        assert whole(verifier, problem, texts) == pytest.approx(theirs.scores(problem, texts), abs=2e-2)


def test_step_by_step_over_forks_and_prunes(folder, name, seed):
    """Beside other branches, which are dropped, all answers grow step by step to the scores of the whole text."""
    verifier = load(folder, name)
    rng, texts = random.Random(seed), answers(seed, name)
    want = [whole(verifier, problem, steps) for problem, steps in texts]
    heads = [open_branch(verifier, problem) for problem, _ in texts]
    found: list[list[float]] = [[] for _ in texts]
    for depth in range(max(len(steps) for _, steps in texts)):
        going = [i for i, (_, steps) in enumerate(texts) if depth < len(steps)]
        forks = [heads[i].fork(3) for i in going]
        for i in going:
            heads[i].close()
        new = [[texts[i][1][depth]] for i in going]
        others = [random_steps(rng, 1 if name in ORMS else 2) for _ in range(2 * len(going))]
        branches = [fork[1] for fork in forks] + [branch for fork in forks for branch in (fork[0], fork[2])]
        scores = run(verifier, verifier.score(branches, [as_steps(steps) for steps in new + others]))
        assert [len(each) for each in scores] == [len(steps) for steps in new + others]
        for i, fork, (score,) in zip(going, forks, scores, strict=False):
            found[i].append(score)
            heads[i] = fork[1]
            fork[0].close()
            fork[2].close()
    for ours, all_at_once in zip(found, want, strict=True):
        assert ours == pytest.approx(all_at_once, abs=1e-5)
    for head in heads:
        head.close()
    assert_idle(verifier.llm.runner)


@pytest.mark.parametrize("step_format", STEP_FORMATS)
def test_a_step_costs_its_own_tokens(tmp_path, step_format):
    """What a branch has been charged for is its ids, each once."""
    verifier, ledger = load(make(tmp_path / "model", step_format), step_format), Ledger()
    steps = random_steps(random.Random(0), 4)
    branch = open_branch(verifier, PROBLEMS[0], ledger)
    for text in steps:
        run(verifier, verifier.score([branch], [as_steps([text])]))
    assert branch.live.token_ids == branch.ids
    assert ledger.tokens["verified"] == len(branch.ids)


def test_what_else_is_scored_changes_no_bit(first, name):
    verifier = load(first, name)
    problem, texts = answers(0, name)[0]
    alone = whole(verifier, problem, texts)
    branches = [open_branch(verifier, each) for each in [problem, *PROBLEMS, *PROBLEMS]]
    others = [random_steps(random.Random(i), 1) for i in range(len(branches) - 1)]
    scores = run(verifier, verifier.score(branches, [as_steps(steps) for steps in [texts, *others]]))
    assert scores[0] == alone


def test_an_end_of_text_is_no_part_of_a_step(first, name):
    verifier = load(first, name)
    branch = open_branch(verifier, PROBLEMS[0])
    finished = Step((5, 2), "So x = 2.", "eos")
    assert run(verifier, verifier.score([branch], [[finished]])) == [whole(verifier, PROBLEMS[0], ["So x = 2.\n\n"])]
