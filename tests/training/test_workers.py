"""Labels made by several processes: the same rows, and what happens when one of them ends."""

from __future__ import annotations

import itertools
import multiprocessing

import pytest
import torch

from engine.runtime import LLM
from engine.runtime.preemption import PoolTooSmall
from engine.training import workers
from engine.training.rollouts import RolloutRecipe, generate, questions
from engine.training.workers import generate_in_workers
from tests.tiny import tiny_policy

RECIPE = RolloutRecipe(num_questions=9, num_samples=2, num_rollouts=2, max_tokens=40)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict:
    return {"folder": tiny_policy(tmp_path_factory.mktemp("models") / "policy"), "num_blocks": 4096, "max_batch": 8}


def test_the_same_rows_as_of_one_process(model, monkeypatch):
    """The process that gathers the rows makes the first two; what it leaves, another one makes."""

    def of_two(llm, recipe, claimed, *more):
        return generate(llm, recipe, itertools.islice(claimed, 2), *more)

    monkeypatch.setattr(workers, "generate", of_two)
    problems = questions(RECIPE)
    todo = [8, 0, 3, 4, 7]
    got = dict(generate_in_workers(2, model, RECIPE, todo, problems))
    assert got == dict(generate(LLM.load(**model), RECIPE, todo))
    assert sorted(got) == sorted(todo)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("is_own", [True, False], ids=["of this process", "of another"])
def test_the_error_that_ends_a_worker_ends_all(model, monkeypatch, is_own):
    if not is_own:
        monkeypatch.setattr(workers, "generate", lambda *args: iter(()))
    with pytest.raises(PoolTooSmall, match="the pool has 2"):
        list(generate_in_workers(2, {**model, "num_blocks": 2}, RECIPE, range(9), questions(RECIPE)))
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed(model):
    # More rows than it can have sent before it dies.
    recipe = RolloutRecipe(num_questions=400, num_samples=4, num_rollouts=4)
    labels = generate_in_workers(2, model, recipe, range(400), questions(recipe))
    next(labels)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(RuntimeError, match="a worker process was killed by SIGKILL"):
        list(labels)


def test_closing_the_iterator_ends_the_workers(model):
    num_threads = torch.get_num_threads()
    labels = generate_in_workers(3, model, RECIPE, range(9), questions(RECIPE))
    next(labels)
    assert len(multiprocessing.active_children()) == 2, "this process is the third"
    labels.close()
    assert not multiprocessing.active_children()
    assert torch.get_num_threads() == num_threads


def test_one_worker_is_this_process(model):
    got = {}
    for index, labelled in generate_in_workers(1, model, RECIPE, [5, 6], questions(RECIPE)):
        got[index] = labelled
        assert not multiprocessing.active_children()
    assert got == dict(generate(LLM.load(**model), RECIPE, [5, 6]))
